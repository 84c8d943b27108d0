"""The fixed sentences of a DP statement, in plain words for a privacy officer.

Terms as in NIST SP 800-226 and in the section on reporting of Ponomareva et al. 2023, "How to DP-fy ML"
(arXiv 2303.00654): setting, unit, adjacency, data accesses covered, the mechanism's output, accounting,
what is left out.
"""

from typing import Final

SETTING: Final = (
    "Central differential privacy at one hospital: the hospital's own machine holds the images in the clear and adds "
    "the noise before anything leaves it."
)
UNIT: Final = "One patient: all images of a patient at this site, both tasks and all augmented views together."
ADJACENCY: Final = (
    "Add or remove one patient: two data sets are neighbours where one has all images of one more patient."
)
TRUST: Final = (
    "The coordinator, the other hospitals and whoever holds the model later are not trusted; "
    "the hospital's own machine and staff are."
)
ACCESSES: Final = (
    "Every training step of every reservation in the ledger, over all runs; a step reads a random sample of patients."
)
RUN_ACCESSES: Final = (
    "Every training step of every reservation of this run, taken alone; what the same patients lose to other runs is "
    "in the figures of the lifetime."
)
OUTPUT: Final = (
    "The weights that the site sends in every round, all of them together, and whatever is computed from them."
)
MECHANISM: Final = (
    "Gaussian, subsampled: a patient's gradient is summed over images, views and tasks and clipped to C in L2 norm; "
    "these are summed over the patients drawn, and noise of standard deviation sigma C is added to the sum once a "
    "step. An empty draw adds noise too."
)
SAMPLER: Final = (
    "Poisson over patients: each patient is in a step with probability q, independently of the others and of earlier "
    "steps"
)
GENERATOR: Final = (
    "ChaCha20, for sampling and for noise, from a fresh secret of the operating system for each reservation; "
    "the ledger holds the secret's SHA-256"
)
SEEDED_GENERATOR: Final = (
    "ChaCha20 from a seed that is known (simulation): whoever knows the seed can take the noise off"
)
ACCOUNTING: Final = (
    "Two accountants price the same history of Poisson-subsampled Gaussian steps, and the larger epsilon is stated. "
    "The prices here were computed anew for this statement. Steps and rounds are composed adaptively."
)
RESERVED: Final = (
    "A reservation is spent from the moment it is written, before a pixel is read; "
    "one without a committed answer counts in full."
)

FROZEN: Final = "A module that a round's plan freezes is not sent in it."
RELEASED_HEAD: Final = (
    "The ledger head, with the proof that the ledger has grown from the one seen before; of a refusal, its reason code."
)
RELEASED_NON_PRIVATE: Final = "Exact weights and training figures, of what was trained without differential privacy."
RELEASED_EVALUATIONS: Final = "Exact figures over held-back patients, of the evaluations that the ledger lists."

NOT_COVERED: Final = (
    (
        "The size of the model, the schedule and the number of rounds and steps are public by design: "
        "they are fixed in the plan and not derived from patients."
    ),
    (
        "The declared number of patients N and the declared labels are public: the statement protects whoever is among "
        "the patients, not that there are about N of them."
    ),
    "The site card, which tells the coordinator what kind of data the site offers, is outside the accounting.",
    (
        "Intake pages and logs stay at the site and show patients' images and counts to the hospital's own staff: "
        "they are not private towards them."
    ),
    "Figures from evaluations over held-back patients, where the site releases them, are exact and carry no noise.",
    (
        "Hyper-parameters that were tuned on these patients, unless each tuning run is in this ledger or declared, "
        "tell something about them that is not counted."
    ),
    (
        "Several hospitals that treat the same patient each spend separately: that patient's losses add up, "
        "and no ledger sees the sum."
    ),
    (
        "The noise is computed in floating point; the rounding can in principle tell more than the ideal Gaussian "
        "of the proof (Mironov 2012)."
    ),
    (
        "Noise and sampling of a run are fixed by its first reservation. Those of a later run, and the coordinator "
        "decides what it calls a run, may have been chosen with earlier answers in sight; the sum over runs is proved "
        "for settings that do not depend on them."
    ),
    (
        "A patient is whoever has one PatientID at this site: images without one, and the same person under two, count "
        "as patients of their own."
    ),
    "The time that a reply takes, and whether one comes at all, can depend on the data and carries no noise.",
    "Data used for pretraining, before the first round, is protected only if it is in a ledger of its own.",
    (
        "A group of k related patients, such as a family, is protected only at epsilon times k, "
        "and with a delta that grows faster than that."
    ),
    (
        "Which patients are in the training split is chosen at the site and is not hidden from its staff; "
        "patients held back are not protected by the noise but by not being trained on."
    ),
    (
        "Which images exist of a patient, and which of them were accepted at intake, is decided at the site, outside "
        "the mechanism."
    ),
)
