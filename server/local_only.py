"""Each site trained alone, for as many steps, as the comparison a hospital asks for first.

The same plans, sites and code as the federated job; only nothing is averaged: each site gets back its own weights.
All sites train side by side.
"""

import secrets
from dataclasses import replace

from flwr.app import MessageType

from multimix.contract.messages import Weights
from multimix.contract.records import array_record, plan_record
from server.aggregation import order
from server.convention import site_figures
from server.federation import Federation
from server.log import log
from server.results import Metrics
from server.rounds import Orders, admitted_reply, evaluate_everywhere


def train_alone(federation: Federation, orders: Orders, initial: Weights, sites: list[str]) -> dict[str, Metrics]:
    """Return the test metrics of each site's own model at that site; a site that fails to answer is left out."""
    # A name of its own for every attempt: sites refuse to go back to the first round of a job they know.
    alone = replace(orders, job_id=f"{orders.job_id}-alone-{secrets.token_hex(2)}")
    weights = dict.fromkeys(sites, initial)
    for round_number in range(1, orders.config.rounds + 1):
        plans = {site: alone.train(round_number, weights[site], site) for site in weights}
        messages = [
            order(federation.nodes[s], array_record(weights[s]), plan_record(plans[s]), MessageType.TRAIN)
            for s in federation.present(weights)
        ]
        replies = federation.exchange(messages, deadline_s=orders.config.deadline_s)
        for site in list(weights):
            reply = federation.reply_of(site, replies)
            update, record = admitted_reply(
                federation,
                alone,
                site,
                reply,
                signed=plans[site],
                round_number=round_number,
                sent=weights[site],
            )
            if update is None:
                log.warning("local-only training of %s left out: %s", site, record.reason)
                del weights[site]
            else:
                weights[site] = weights[site] | update.weights
        log.info("local-only round %d of %d, %d sites", round_number, orders.config.rounds, len(weights))
    scores = evaluate_everywhere(federation, alone, weights, pictures=0)
    return {site: site_figures(report.statistics, orders.mask_convention) for site, report in scores.reports.items()}
