"""Every reason code that may stand beside a site's answer: its own refusals, and the server's for leaving it out.

A site chooses the words of its refusals, and might put a name there. So what goes to machines that others read is one
of these, or `other`. A test gathers them where they are raised.
"""

from typing import Final

REASONS: Final = frozenset(
    """
    absent accountants_disagree agent_unavailable answered_already batch_too_large cancelled cohort_too_small
    control_unusable coordinator_missing countersignature_invalid countersignature_missing data_changed
    device_unavailable dp_budget_lifetime dp_budget_run dp_changed dp_clip_norm dp_cohort dp_declared_patients
    dp_delta dp_delta_raised dp_epsilon dp_images_per_patient dp_mechanism_unknown dp_noise dp_parameters
    dp_required dp_rounds epsilon_too_large epsilon_unreachable evaluation_failed evaluation_images
    evaluation_mismatch evaluation_not_released image_size internal_error job_not_approved ledger_busy
    ledger_changed_key ledger_clock_back ledger_conflict ledger_damaged ledger_disk_full ledger_entry_invalid
    ledger_extension_too_long ledger_head_missing ledger_key_unusable ledger_missing ledger_not_open
    ledger_of_another_site ledger_shorter ledger_truncated ledger_unreadable ledger_unwritable mask_absent
    message_too_large network_mixes_patients network_too_wide no_training_images non_private_not_signed
    nothing_taught officer_unknown order_damaged order_missing plan_changed plan_incomplete plan_malformed
    plan_replayed plan_signature population_exposed population_missing private_figures protocol_unknown
    pseudonym_key_invalid reply_damaged reply_malformed reply_missing reply_purged reply_too_large
    request_malformed reservation_unknown secret_damaged secret_missing secret_not_private secret_reused
    secret_unusable settings_invalid silent site_busy site_error site_exists site_held_out site_left site_mismatch
    site_missing site_not_configured site_paused site_revoked site_unknown store_damaged store_empty store_missing
    too_many_steps training_diverged training_failed unknown update_norm weights_hash weights_names
    weights_not_finite weights_shape weights_type weights_unreadable wrong_job wrong_plan wrong_round
    """.split()  # noqa: SIM905  (a hundred lines otherwise)
)
