"""Which extract is next: pure functions, no I/O."""

from collections.abc import Collection
from dataclasses import dataclass

from kbo_pipeline.errors import OrderError
from kbo_pipeline.extracts import ExtractKey
from kbo_pipeline.ledger import check_order


def next_to_apply(
    staged: Collection[ExtractKey], published: ExtractKey | None
) -> ExtractKey | None:
    """The staged extract that follows what is published; None when none does.

    The lowest number comes first; of one number the Update, because it costs less than the Full.

    Args:
        staged: extracts that are staged and not published.
        published: the newest published extract.
    """
    for key in sorted(staged, key=lambda key: (key.number, key.type == "full")):
        try:
            check_order(key, published)
        except OrderError:
            continue
        return key
    return None


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be imported of what is on offer.

    Attributes:
        due: extracts, in the order in which they are imported.
        reason: why these, in one line.
        gap: what is missing, where neither the needed extract nor a Full above it is at hand.
    """

    due: tuple[ExtractKey, ...]
    reason: str
    gap: str | None = None


def plan_imports(
    offered: Collection[ExtractKey],
    published: ExtractKey | None,
    unusable: Collection[ExtractKey] = (),
) -> Plan:
    """Plans the way from what is published to the newest extract on offer.

    An Update costs little, so Updates come in order as long as each is there. Where one is not,
    expired or never made, the newest Full above goes in its place, and the Updates after it.

    Args:
        offered: extracts on offer, in any order.
        published: the newest published extract; None when the register is empty.
        unusable: extracts that count as not there, though they may be on offer.
    """
    usable = set(offered) - set(unusable)
    fulls = sorted(key.number for key in usable if key.type == "full")
    updates = {key.number for key in usable if key.type == "update"}
    newest = max((key.number for key in offered), default=0)
    if published is None and not fulls:
        return Plan(
            (), "the register is empty and no Full is at hand", gap="a Full" if offered else None
        )

    def absence(key: ExtractKey) -> str:
        return "failed too often" if key in unusable else "is not on offer"

    due: list[ExtractKey] = []
    bridges: list[str] = []
    number = published.number if published else 0
    while number < newest:
        following = ExtractKey(number + 1, "update")
        if (due or published) and following.number in updates:
            due.append(following)
        elif fulls and fulls[-1] > number:
            due.append(ExtractKey(fulls[-1], "full"))
            missing = f"{following} {absence(following)}" if number else "the register is empty"
            bridges.append(f"{missing}: {due[-1]} takes its place")
        else:
            reason = f"{following} {absence(following)}, and there is no Full above it"
            return Plan(tuple(due), "; ".join([*bridges, reason]), gap=str(following))
        number = due[-1].number
    if not due:
        return Plan((), f"{published} is the newest: nothing to do")
    return Plan(tuple(due), "; ".join(bridges) or f"follows {published}")
