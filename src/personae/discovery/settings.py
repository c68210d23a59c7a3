"""What a user may ask of discovery, checked before anything is loaded or computed."""

from __future__ import annotations

from dataclasses import dataclass, replace

from personae.discovery.selection import SCOPES, check_share
from personae.errors import OptionError

METHODS = (
    "directed",
    "directed-forward",
    "wanda",
    "contrastive-wanda",
    "contrastive-sparse",
    "sparsegpt",
    "generic",
    "magnitude",
    "random",
)
DEFAULT_BUDGET = 0.05  # nats a token
DEFAULT_CHEAP_SHARES = (0.6,)  # tried within a budget
FIXED_CHEAP_SHARE = 0.3  # with a drop share: no budget stands behind it, so a more careful one
DEFAULT_ROUNDS = 2
# Options that shape only some methods, with the methods that read them; the contrastive ones break ties by `wanda`.
_READ_BY = {
    "statistic": ("wanda", "contrastive-wanda", "contrastive-sparse"),
    "phi": ("contrastive-wanda",),
    "rank_by": ("directed", "directed-forward"),
    "forward": ("directed-forward",),
}


@dataclass(frozen=True, slots=True)
class Settings:
    """Options of one discovery. `checked()` fills the default of the budget and refuses contradictions.

    method: one of METHODS. max_capability_loss: the budget, nats a token (the default way to choose how much
    is dropped). cheap_share, drop_share: c and the share of weights dropped, for both `directed` forms. sparsity:
    share of weights dropped, for the scores and for isolated. isolated: a whole subnetwork at `sparsity` from
    `directed`. selection: 'row', 'target' or 'global'. n_m: (N, M) keeps N of every M inputs. statistic: 'mean_abs'
    or 'l2'. phi: 'relu' or 'softplus'. tokens: 'answer' or 'all'. rank_by: 'gain-per-price' (H/√D, D = w²·F
    the Fisher price on generic text; `directed-forward`, which knows no gradient: |w|·rms(x)) or 'gain' (H).
    forward: of `directed-forward`, 'lean' or 'separation'.
    rounds: of `directed` within a budget (2 by default): after the first, costs are taken anew at the masked point.
    steps: of `directed` within a budget, in place of rounds: so many short steps, each with gains and costs of a few
    texts under the mask of the steps before (`steps.stepped`). Their objective is always 'log-sigmoid'. step_share:
    the largest mask that steps wear, a share of the target weights (None: 0.0004); they give masks up to 1.25 times it.
    objective: 'margin' or 'log-sigmoid' (of the margin); own_weight: β, added weight of log p of the persona's own
    answers.
    """

    method: str = "directed"
    max_capability_loss: float | None = None
    cheap_share: float | None = None
    drop_share: float | None = None
    sparsity: float | None = None
    isolated: bool = False
    selection: str = "row"
    n_m: tuple[int, int] | None = None
    statistic: str = "mean_abs"
    phi: str = "relu"
    tokens: str = "answer"
    rank_by: str = "gain-per-price"
    forward: str = "lean"
    objective: str = "margin"
    own_weight: float = 0.0
    rounds: int | None = None
    steps: int | None = None
    step_share: float | None = None
    seed: int = 0

    @property
    def by_candidates(self) -> bool:
        """Whether the method orders the candidates u < c by a gain, instead of scoring all weights."""
        return self.method in {"directed", "directed-forward"}

    @property
    def unread(self) -> tuple[str, ...]:
        """Options with another value than the default that these settings do not read: they would change nothing."""
        return tuple(
            name
            for name, methods in _READ_BY.items()
            if getattr(self, name) != getattr(_DEFAULTS, name)
            and (self.method not in methods or (name == "rank_by" and self.isolated))
        )

    def checked(self) -> Settings:
        """These settings with the budget filled in where nothing else says how much to drop.

        Errors: `OptionError` naming the two options that exclude each other, or the value out of range.
        """
        if self.method not in METHODS:
            raise OptionError(f"unknown method {self.method!r}: choose {', '.join(METHODS)}.")
        for name, value, choices in (
            ("--selection", self.selection, SCOPES),
            ("--statistic", self.statistic, ("mean_abs", "l2")),
            ("--phi", self.phi, ("relu", "softplus")),
            ("--tokens", self.tokens, ("answer", "all")),
            ("--rank-by", self.rank_by, ("gain", "gain-per-price")),
            ("--forward", self.forward, ("lean", "separation")),
            ("--objective", self.objective, ("margin", "log-sigmoid")),
        ):
            if value not in choices:
                raise OptionError(f"unknown {name} {value!r}: choose {', '.join(choices)}.")
        if not 0 <= self.own_weight < float("inf"):
            raise OptionError(f"--own-weight is {self.own_weight}: it must be 0 or more.")
        if self.rounds is not None and self.rounds < 1:
            raise OptionError(f"--rounds is {self.rounds}: it must be 1 or more.")
        for option, share in (
            ("--cheap-share", self.cheap_share),
            ("--drop-share", self.drop_share),
            ("--sparsity", self.sparsity),
            ("--step-share", self.step_share),
        ):
            if share is not None:
                check_share(share, option)
        directed = self.by_candidates
        own_share = self.cheap_share is not None or self.drop_share is not None
        if self.max_capability_loss is not None:
            if not 0 < self.max_capability_loss < float("inf"):
                raise OptionError(f"--max-capability-loss is {self.max_capability_loss}: it must be a positive number.")
            for option, given in (
                ("--cheap-share", self.cheap_share is not None),
                ("--drop-share", self.drop_share is not None),
                ("--sparsity", self.sparsity is not None),
                ("--n-m", self.n_m is not None),
            ):
                if given:
                    raise OptionError(f"--max-capability-loss chooses how much to drop; it excludes {option}.")
        if self.method != "directed" and (self.objective != "margin" or self.own_weight):
            raise OptionError(f"--objective and --own-weight belong to directed, not to {self.method}.")
        for name in self.unread:
            option, to = f"--{name.replace('_', '-')}", ", ".join(_READ_BY[name])
            form = "--isolated" if self.isolated else self.method
            raise OptionError(f"{option} belongs to {to}, not to {form}, which would not read it: leave {option} out.")
        if self.isolated and (self.method != "directed" or self.sparsity is None):
            raise OptionError("--isolated needs --method directed and --sparsity.")
        if self.isolated and own_share:
            raise OptionError("--isolated drops --sparsity of each row; it excludes --cheap-share and --drop-share.")
        if directed and self.selection != "row":
            raise OptionError(
                "--selection belongs to the scores: directed orders its candidates over all targets, and --isolated "
                "selects within rows."
            )
        if directed and self.sparsity is not None and not self.isolated:
            raise OptionError(f"--method {self.method} takes --drop-share; --sparsity goes with --isolated.")
        if not directed and own_share:
            raise OptionError(f"--cheap-share and --drop-share belong to directed; {self.method} takes --sparsity.")
        if self.n_m is not None:
            if directed:
                raise OptionError("--n-m belongs to the scores, not to directed.")
            if self.sparsity is not None:
                raise OptionError("--n-m fixes the sparsity; it excludes --sparsity.")
            if self.selection != "row":
                raise OptionError("--n-m selects within rows; it excludes --selection target and global.")
        if self.rounds is not None and (self.method != "directed" or own_share or self.isolated):
            raise OptionError("--rounds belongs to directed within a budget: leave the shares and the sparsity out.")
        if self.steps is not None:
            if self.steps < 1:
                raise OptionError(f"--steps is {self.steps}: it must be 1 or more.")
            if self.method != "directed" or own_share or self.isolated:
                raise OptionError("--steps belongs to directed within a budget: leave the shares and the sparsity out.")
            if self.rounds is not None:
                raise OptionError("--steps orders weights in short steps, --rounds in whole passes: give one of them.")
        elif self.step_share is not None:
            raise OptionError("--step-share is the largest mask that short steps wear: it needs --steps.")
        fixed = own_share or self.sparsity is not None or self.n_m is not None
        if not fixed and self.max_capability_loss is None:
            return replace(self, max_capability_loss=DEFAULT_BUDGET).checked()
        if self.steps and self.objective == "margin":  # what steps take, whether it is asked for or not
            return replace(self, objective="log-sigmoid").checked()
        in_rounds = self.method == "directed" and self.max_capability_loss is not None and self.steps is None
        if in_rounds and self.rounds is None:
            return replace(self, rounds=DEFAULT_ROUNDS)
        return self


_DEFAULTS = Settings()
