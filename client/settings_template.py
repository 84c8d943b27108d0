"""The text of a new `site.toml`: every key of `client.settings` with a word about it, most of them as comments."""

from typing import Final

TEMPLATE: Final = """\
# The settings of this site; docs/site-data.md explains each.
name = "{name}"
image_size = {image_size}
mask_convention = "mediastinum_excluded"  # or "behind_heart": what a lung mask without a word of its own means
# store_group = "multimix-agent"          # the group of the training agent, if it is another user

[label_map]  # words of your labels files that mean one of ours: normal, pneumonia, other, unknown
# "No Finding" = "normal"

[intake]
seconds_per_file = 20
memory_mib = 2048

# [pacs]                                  # DICOMweb
# url = "https://pacs.example/dicom-web"
# username = "multimix"
# password_file = "/etc/multimix/pacs.password"

# [receiver]                              # C-STORE, for `multimix-site receive`
# ae_title = "MULTIMIX"
# port = 11112
# allowed_calling_ae = ["PACS"]

# [server]                                # for `multimix-site check`
# address = "coordinator.example:8000"
# ca_file = "/etc/multimix/coordinator-ca.pem"
# coordinator_key = "KEY OF THE KIT"      # who may order training here; Ed25519

# [agent]                                 # `multimix-site agent`, which trains and has no network
# folder = "/srv/multimix/site-agent"     # of ledger and log, where the agent is another user than intake
# connector_folder = "/srv/multimix/site-connector"  # of kit and node key, where the connector is another user
# connector_group = "multimix-connector"  # the group of the user that runs `multimix-site connect`
# socket = "/run/multimix/agent.sock"     # where the agent listens
# metrics_folder = "/srv/multimix/site-metrics"  # of metrics.prom, readable by all, for monitoring
# maximum_weights_mib = 2048              # a larger model is refused before it is read
# threads = 0                             # 0: as many as torch takes
# device = "auto"                         # or "cpu", "cuda"

# Whose privacy is spent, and how much of it there is: the hospital decides, with its privacy officer.
# What is declared here is told to the federation: give round numbers, never counts taken from the images.
# Then run: multimix-site ledger begin
# [population]
# name = "patients"
# declared_patients = 1000                # about so many patients are trained on
# declared_labels = {{ normal = 400, pneumonia = 400 }}  # about so many of them have each label
# declared_masks = {{ mediastinum_excluded = 200 }}  # about so many have a lung mask, by convention
# images_per_patient = 4                  # at most so many of a patient's images are used in one step
# epsilon_per_run = 3.0                   # the most that one run may cost each patient
# epsilon_lifetime = 8.0                  # the most that all runs together may cost each patient, ever
# delta = 0.0005                          # below 1 / declared_patients; declared_patients ** -1.1 if left out
# ledger = "/srv/multimix/ledger"         # a folder that outlives this site's; else it is ledger/ in here
# officer_key = "KEY OF THE OFFICER"      # who may sign exceptions; multimix-site officer key makes one

[policy]  # what no plan of the coordinator gets past
minimum_cohort = 10                       # no count of fewer patients leaves
approve_jobs = true                       # each job waits for: multimix-site approve JOB
# allow_non_private = false               # true: training without differential privacy, once the officer has signed
# maximum_clip_norm = 10.0                # a larger bound on one patient's gradient is refused
# minimum_noise_multiplier = 0.5          # less noise, in units of that bound, is refused
# minimum_expected_patients = 10          # fewer patients in a step, on average, are refused
# share_budget = false                    # true: the coordinator sees what share of the lifetime's epsilon is left
# release_evaluation = false              # true: exact figures over patients held back from training may leave
"""
