"""Does an answer open by saying yes, by saying no, or by neither?

Many two-choice sets give themselves away by their first word: 'prefer yes, avoid no' alone scores
well above one half on power-seeking. Items whose two answers open with the same polarity are
*tied*: there, only the content can decide. The rule is a list of openings, so a reader can check it.
"""

from __future__ import annotations

import re
from typing import Literal

Polarity = Literal["yes", "no", "neither"]

# Tried first: an opening such as 'Absolutely not' or 'I would not' contains a yes-like beginning.
_NO = re.compile(
    r"""(?:
        no | nope | nah | never | not | neither | none | hardly | nothing
      | (?:absolutely|certainly|definitely|of\ course|probably|honestly|perhaps|maybe)[ ,]+(?:not|no)
      | (?:i|we|it|that|this|you|they|he|she)
            [ ]+(?:really[ ]+|personally[ ]+|just[ ]+|certainly[ ]+|definitely[ ]+|probably[ ]+|simply[ ]+)?
            (?:would|do|am|will|could|can|should|did|does|is|are|was|have|has|must|may|might|shall)
            [ ]+(?:really[ ]+|personally[ ]+|certainly[ ]+|definitely[ ]+|probably[ ]+)?(?:not|never|rather[ ]+not)
      | (?:i|we|it|that|this|you|they|he|she)[ ]+(?:really[ ]+|personally[ ]+)?
            (?:wouldn|don|won|couldn|can|shouldn|didn|doesn|isn|aren|wasn|haven|hasn)'?t
      | (?:i'm|i\ am|we're|it's|that's|i'd|i'll)[ ]+(?:really[ ]+)?(?:not|rather\ not|never)
      | i[ ]+(?:(?:strongly|respectfully|completely|politely|must|would)[ ]+)*
            (?:cannot|disagree|refuse|decline|reject|oppose|doubt|hate|dislike|never)
      | cannot | don't | do\ not | disagree | disagreed | false | incorrect | wrong | unlikely
      | decline | declined | refuse | reject | turn\ down
    )\b""",
    re.VERBOSE,
)
_YES = re.compile(
    r"""(?:
        yes | yeah | yep | yup | sure | certainly | absolutely | definitely | of\ course | indeed
      | ok | okay | agreed | agree | true | correct | right | gladly | exactly | totally | always
      | accept | accepted | without\ (?:a\ )?(?:doubt|question|hesitation) | undoubtedly | by\ all\ means
      | i[ ]+(?:(?:completely|fully|strongly|definitely|certainly|absolutely|totally|gladly|really)[ ]+)*
            (?:agree|accept|welcome|approve|support)
      | i[ ]+(?:would|do|will|am|could|can)(?=[ ]*[,.;!]|$)
      | (?:i[ ]+(?:would|will)|i'd|i'll)[ ]+(?:(?:definitely|certainly|absolutely|totally|really)[ ]+)*
            (?:love|gladly|happily|accept|agree|welcome|like|want|definitely|certainly|absolutely
              |be[ ]+(?:very[ ]+|more[ ]+than[ ]+)?(?:happy|glad|delighted|willing|interested|thrilled|honored|excited))
      | i'm[ ]+(?:in|game|interested|honored|happy[ ]+to|glad[ ]+to|willing|delighted|excited)
      | (?:it|that|this)[ ]+(?:is|does|would|will)(?=[ ]*[,.;!]|$)
      | (?:it|that|this)?[ ]*sounds[ ]+(?:good|great|wonderful|like[ ]+a)
    )(?!\w)""",
    re.VERBOSE,
)


def polarity(answer: str) -> Polarity:
    """The polarity of an answer's opening words: 'yes', 'no' or 'neither'.

    Case, quotes and leading punctuation are ignored; curly apostrophes count as straight ones.
    """
    opening = answer.replace("\u2019", "'").lower().lstrip(" \t\n\r\"'`*([{-\u2013\u2014\u201c\u2018.,;:")
    if _NO.match(opening):
        return "no"
    return "yes" if _YES.match(opening) else "neither"


def is_tied(positive: str, negative: str) -> bool:
    """True where both answers open with the same polarity, so that polarity cannot decide."""
    return polarity(positive) == polarity(negative)


def yes_baseline(positive: str, negative: str) -> float:
    """Score of 'prefer yes, avoid no' on one item: 1 right, 0 wrong, one half where it cannot say."""
    rank = {"yes": 1, "neither": 0, "no": -1}
    difference = rank[polarity(positive)] - rank[polarity(negative)]
    return 0.5 if difference == 0 else float(difference > 0)
