"""The hostile ServerApp: started like ours at the federation's server, it has all that ours has, the key too.

It asks the sites for their cards, sends each the attacks of a set in `orders.SETS`, and writes what came of them, by
site and attack, to the file that the run configuration names.
"""

import json
import os
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.serverapp import Grid, ServerApp

from evil.orders import SETS, Attack, Coordinator
from multimix.contract.messages import SiteCard
from multimix.contract.records import array_record, read_reply
from server.production import FEDERATION
from server.provision.folder import open_federation

app = ServerApp()
_DEADLINE_S = 240.0


@app.main()
def main(grid: Grid, context: Context) -> None:
    key = open_federation(Path(os.environ[FEDERATION])).signing_key()
    found = {}
    for node in grid.get_node_ids():
        card = read_reply(asked(grid, node, RecordDict(), MessageType.QUERY), SiteCard)
        by = Coordinator(card, key)
        attacks = [attack for make in SETS[str(context.run_config["attacks"])] for attack in make(by)]
        order = RecordDict({"attacks": packed(attacks), "arrays": array_record(by.weights())})
        answer = asked(grid, node, order, MessageType.TRAIN).config_records["outcomes"]["outcomes"]
        found[card.site] = dict(zip((attack.name for attack in attacks), answer, strict=True))
    Path(str(context.run_config["out"])).write_text(json.dumps(found))


def packed(attacks: list[Attack]) -> ConfigRecord:
    heads = [attack.signed.countersigned for attack in attacks]
    return ConfigRecord(
        {
            "ways": [attack.way for attack in attacks],
            "documents": [attack.signed.document for attack in attacks],
            "signatures": [attack.signed.signature for attack in attacks],
            "heads": [head.model_dump_json() if head else "" for head in heads],
        }
    )


def asked(grid: Grid, node: int, content: RecordDict, kind: str) -> RecordDict:
    (reply,) = grid.send_and_receive([Message(content, dst_node_id=node, message_type=kind)], timeout=_DEADLINE_S)
    return reply.content
