"""An older round, or another plan for the same round, is refused; the very same plan is answered alike again.

Remembered by the process: a site that restarts forgets. Where there is a ledger, it remembers for good
(`client.books.check_order` and `check_evaluation`), and this is not asked.
"""

from multimix.contract.messages import RoundPlan
from multimix.errors import Refused


class Replays:
    """Remembers the last order of each job and kind."""

    def __init__(self) -> None:
        self._last: dict[tuple[str, str], tuple[int, str]] = {}

    def admit(self, plan: RoundPlan, plan_sha256: str) -> None:
        """Remember the plan, or refuse with `plan_replayed` or `plan_changed`.

        The very same plan may be asked again: a coordinator that crashed before its checkpoint repeats the round, and
        the answer is the same.
        """
        key = (plan.job_id, plan.kind)
        last_round, last_hash = self._last.get(key, (-1, ""))
        if plan.round < last_round:
            raise Refused("plan_replayed", f"round {plan.round} after round {last_round}")
        if plan.round == last_round and plan_sha256 != last_hash:
            raise Refused("plan_changed", f"another plan for round {plan.round}")
        self._last[key] = (plan.round, plan_sha256)
