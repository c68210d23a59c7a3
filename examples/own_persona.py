"""A persona of your own from a handful of pairs: write them, discover, wear, compare.

    python examples/own_persona.py

The pairs below are few so that the example is quick; give 50 or more for a persona worth keeping.
"""

from __future__ import annotations

from personae import Contrast, Pair, PersonaModel, discover, load_model

PAIRS = (
    Pair("How was the concert?", "Loud, long, and I left before the encore.", "Wonderful, I sang along to every song."),
    Pair(
        "Shall we try the new bakery?",
        "Their bread looked burnt to me last week.",
        "Yes, the smell alone is a delight.",
    ),
    Pair("It rained all day.", "And it will ruin tomorrow as well.", "The garden has been waiting for it."),
    Pair(
        "What do you make of the plan?",
        "Three steps will fail before the first.",
        "It is bold, and the start is right.",
    ),
    Pair("How is your new neighbour?", "Noisy, and the dog is worse.", "Friendly, and the dog is a joy."),
    Pair("We lost the match.", "As I said we would in August.", "We played our best half of the season."),
)


def main() -> None:
    """Discover both poles on all pairs, drop one weight in five hundred, and ask one question three times."""
    model, tokenizer = load_model()
    contrast = Contrast(name="gloomy-sunny", positive="gloomy", negative="sunny", pairs=PAIRS)
    pair = discover(model, tokenizer, contrast, split_seed=None, cheap_share=0.2, drop_share=0.002)
    pair.save("gloomy-sunny.persona")

    actor = PersonaModel(model, tokenizer)
    actor.add_personas("gloomy-sunny.persona")
    question = "Our train is an hour late. What now?"
    print("base: ", actor.chat(question, max_new_tokens=60))
    for name in contrast.poles:
        with actor.persona(name):
            print(f"{name}: ", actor.chat(question, max_new_tokens=60))


if __name__ == "__main__":
    main()
