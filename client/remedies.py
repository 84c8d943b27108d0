"""What a person does about a refusal of the ledger, the officer's key, the accountants or the site agent.

A refusal carries a reason code and numbers only; here the code gets its words. docs/privacy.md says more.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import MappingProxyType
from typing import Final

from multimix.errors import Refused, SiteError

_RESTORE: Final = "Restore the newest whole backup of the ledger's folder, and tell the coordinator what happened."
_REPORT: Final = "Nothing was changed. Please report this line."
_ASK: Final = "Tell the coordinator: the order cannot be what was agreed."

REMEDIES: Final = MappingProxyType(
    {
        "ledger_missing": "There is no ledger for this population. If these patients never trained, begin one: "
        "multimix-site ledger begin. If they did, restore its backup: a new ledger would forget what was spent.",
        "ledger_busy": "The ledger is in use: the site agent is training, or another command writes. Try later.",
        "ledger_damaged": f"The ledger was changed after it was written, or its disk is failing. {_RESTORE}",
        "ledger_truncated": "Entries are missing that the coordinator has seen: the ledger was cut, or an old backup "
        f"stands in its place. {_RESTORE}",
        "ledger_of_another_site": "This ledger belongs to another site or population. Check name, population.name and "
        "population.ledger in site.toml; after a wrong restore, restore this site's own ledger.",
        "ledger_key_unusable": "ledger.key is missing, damaged or readable by others. Set its mode to 0600, or restore "
        "it from the backup of the ledger's folder.",
        "ledger_unreadable": "The ledger cannot be read. Check the folder's owner and mode (0700), and the disk.",
        "ledger_unwritable": "The ledger cannot be written. Check the folder's owner and mode (0700), and the disk.",
        "ledger_disk_full": "The disk of the ledger is full. Nothing was entered. Free space, and run it again.",
        "ledger_clock_back": "The machine's clock is behind the ledger's last entry. Set the clock right; if the last "
        "entry itself is from the future, wait until then.",
        "ledger_entry_invalid": "The entry holds something that a ledger does not take. Shorten or correct the text.",
        "ledger_not_open": _REPORT,
        "ledger_extension_too_long": "The coordinator has not seen this ledger for very many entries. Ask the "
        "coordinator, who has to take it in by hand.",
        "countersignature_invalid": "countersigned.json is damaged, or is not by the coordinator of site.toml. Check "
        "server.coordinator_key, and ask the coordinator for the newest countersignature.",
        "countersignature_missing": "The coordinator countersigned this ledger before, and its order does not show it. "
        "Ask the coordinator to restore the server's heads.jsonl; until then nothing is trained.",
        "training_failed": "Training broke off at this site; what was reserved stays spent, and the same order is "
        "answered again at no further cost. The agent's log names the error and its place: please report that line.",
        "evaluation_failed": "Evaluation broke off at this site. The agent's log names the error and its place: please "
        "report that line.",
        "job_not_approved": "The job waits for this hospital's approval: multimix-site approve JOB.",
        "site_paused": "This site is paused. Take orders again: multimix-site resume.",
        "site_left": "This site has left the federation. Take part again: multimix-site resume, then approve its jobs.",
        "site_busy": "Another order ran at that time. Nothing is to be done here.",
        "cancelled": "The round was ended before it was done: by the site, or by a later round of its job. If privacy "
        "was reserved for it, that stays spent, and the same order is answered again at no further cost.",
        "control_unusable": "control.json in the site's folder cannot be read, so nothing is trained. Remove it, then "
        "approve jobs anew.",
        "wrong_user": "What the agent keeps belongs to another user. Run the command as that user: sudo -u USER "
        "multimix-site ...",
        "message_too_large": "The model is larger than agent.maximum_weights_mib of site.toml allows.",
        "request_malformed": "What the connector sent is no order. Check that it runs the same version as the agent.",
        "protocol_unknown": "The other side speaks another version of the protocol. Update the older one.",
        "plan_signature": "The order is not signed by the coordinator of site.toml. Check server.coordinator_key "
        "against the coordinator's kit; if it is right, somebody else gives orders: tell the coordinator.",
        "agent_unavailable": "The site agent does not answer. Start it: multimix-site agent.",
        "officer_unknown": "This is not the key of the officer whom site.toml names (population.officer_key). Take the "
        "right key file, or have the hospital enter this officer's public key.",
        "population_exposed": "These patients trained without privacy. Further private training needs the officer: "
        "multimix-site officer allow private-after-non-private.",
        "non_private_not_signed": "Training without privacy needs the officer: multimix-site officer allow "
        "non-private.",
        "secret_missing": "A reservation's secret is gone: that round cannot be answered any more. Its budget stays "
        "spent; the next round goes on.",
        "secret_damaged": "A reservation's secret is damaged: that round cannot be answered any more. Its budget stays "
        "spent; check the disk.",
        "secret_reused": _REPORT,
        "reservation_unknown": _REPORT,
        "answered_already": "This order was answered already; its stored answer is the only one.",
        "reply_missing": "The stored answer of a round is gone. Its budget stays spent; check the disk.",
        "reply_purged": "The stored answer was purged by the officer. It cannot be sent again.",
        "reply_damaged": "The stored answer of a round is damaged. Its budget stays spent; check the disk.",
        "generation_gone": "The images that this round trained on are not here as they were: a patient was purged, or "
        "the generation was replaced. That round cannot be replayed.",
        "order_missing": "What was ordered in a round was not kept, or was purged: that round cannot be replayed.",
        "order_damaged": "What was ordered in a round is damaged on disk: that round cannot be replayed. Check "
        "the disk.",
        "order_changed": "What is kept as the order of a round is not the order that the ledger names. Treat the "
        "site's folder as altered.",
        "plan_malformed": "The order is by another version of the software. Audit it with that version.",
        "weights_shape": "The weights kept do not fit the network of the order. Audit with the version that trained.",
        "audit_parameters": "Give 64 canaries at least; a run of one step cannot be tested for repeated noise.",
        "audit_patients": "Fewer than two patients train here: there is nobody to compare.",
        "audit_not_finite": "The trainer's gradients are infinite or no numbers: it does not clip, or the weights are "
        "broken.",
        "audit_not_watched": "The trainer did not show every step: this is not the trainer that the audit is made for.",
        "audit_scores": "The trainer's gradients cannot be scored: they are not finite numbers.",
        "audit_counts": _REPORT,
        "audit_inclusion": _REPORT,
        "plan_incomplete": _ASK,
        "plan_replayed": _ASK,
        "plan_changed": _ASK,
        "data_changed": "These figures were given before, on other images: together with the new ones they would tell "
        "of single patients. The coordinator can ask anew in a later round or another job.",
        "dp_changed": _ASK,
        "dp_delta_raised": "delta of a population never rises: what was promised at the smaller one would be stated at "
        "a larger. Set population.delta in site.toml to what it was.",
        "dp_budget_run": "The run has no budget left for this. multimix-site budget shows what was spent.",
        "dp_budget_lifetime": "These patients have no budget left. multimix-site budget shows what was spent.",
        "dp_parameters": "A number is outside the range in which privacy can be priced: noise multiplier 0.1 to 1e5, "
        "sampling rate 1e-5 to 1, 2 million steps in all, delta 1e-10 to 1.",
        "epsilon_too_large": "What was spent is above epsilon 100, which protects nobody and is not priced.",
        "accountants_disagree": "The two accountants disagree, so neither is believed. Check that opacus and "
        "dp-accounting are the versions that multimix-site check expects, and report the numbers.",
        "epsilon_unreachable": "No noise is enough for this epsilon on top of what is spent. Ask for fewer steps.",
    }
)


@contextmanager
def explained() -> Iterator[None]:
    """Turn a refusal that has a remedy into a `SiteError` of the same reason that says what to do."""
    try:
        yield
    except Refused as refusal:
        remedy = remedy_of(refusal)
        if not remedy:
            raise
        raise SiteError(refusal.reason, remedy) from None


def remedy_of(refusal: Refused) -> str:
    """Return what to do, with the refusal's numbers; "" for a reason that has none."""
    remedy = REMEDIES.get(refusal.reason, "")
    return f"{remedy} ({refusal.detail})" if remedy and refusal.detail else remedy
