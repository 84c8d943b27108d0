"""A summary with realistic figures, made up: the paper's grid in two cells, and a federation."""

from sim.experiments.summary import Summary

SETS = {
    "chex224/test": ("auroc", "accuracy", "balanced_accuracy", "f1_normal", "f1_pneumonia", "score_std", "ece"),
    "nih14/test": ("auroc", "accuracy", "balanced_accuracy", "f1_normal", "f1_pneumonia", "score_std", "ece"),
    "jsrt/test": ("dice", "hausdorff_px", "hausdorff95_px", "ssim"),
    "montgomery/test": ("dice", "hausdorff_px", "hausdorff95_px", "ssim"),
    "shenzhen/test": ("dice",),
}
CLASS = {"enc": 0.80, "enc-ssl": 0.83, "umtl": 0.81, "umtls": 0.82, "paper": 0.88, "modern": 0.93}
CLASS |= {"modern-supervised": 0.87, "modern-bridge-off": 0.92, "majority": 0.5, "thumbnail-ridge": 0.845}
MASK = {"u-net": 0.90, "umtl": 0.78, "umtls": 0.92, "paper": 0.945, "modern": 0.962, "modern-supervised": 0.951}
MASK |= {"modern-bridge-off": 0.958, "mean-mask": 0.812}
NAMES = ("majority", "mean-mask", "thumbnail-ridge", "u-net", "enc", "enc-ssl", "umtl", "umtls", "paper", "modern")
NAMES = (*NAMES, "modern-supervised", "modern-bridge-off")
UNTRAINED = ("majority", "mean-mask", "thumbnail-ridge")


def paper_summary(cells=("1000-50", "100-10"), **changes):
    rows = [row for cell in cells for name in NAMES if (row := _row(name, cell))]
    unique = {(row["row"], row["group"]): row for row in rows}
    return summary("paper", list(unique.values()), **changes)


def federated_summary(**changes):
    groups = ("without-montgomery", "without-nih14", "local")
    rows = []
    for place, group in enumerate(groups):
        names = ("local-kermany", "local-jsrt") if group == "local" else ("majority", "mean-mask", "fedavg", "ensemble")
        rows += [_hospitals(name, group, 0.02 * number - 0.03 * place) for number, name in enumerate(names)]
    rows += [_hospitals(name, groups[0], -0.1) for name in ("phantoms", "epsilon-3", "epsilon-8", "not-private")]
    return summary("federated", rows, **changes)


def summary(experiment, rows, **changes):
    document = {
        "experiment": experiment,
        "scale": "cpu",
        "rows": rows,
        "differences": [difference("modern", "umtl", 0.121, 0.001), difference("modern", "paper", -0.012, 0.21)],
        "missing": ["modern_100-10_s2", "umtl_100-10_s2"],
        "cases": len(rows),
        "code": ["0.1.0+411b2921e4400f13"],
        "data_sha256": ["d0d480153095231cbdac52f21c02e76a6bf2c80c6fb1246f2a1d136b3b77c953"],
        "devices": ["cpu"],
        "software": {"python": "3.11.7", "torch": "2.13.0+cpu", "numpy": "2.4.6"},
        "compute_s": 9300.0,
    }
    return Summary.model_validate({**document, **changes})


def difference(first, second, value, p):
    return {
        "first": first,
        "second": second,
        "first_group": "1000-50",
        "second_group": "1000-50",
        "set": "chex224/test",
        "metric": "auroc",
        "seeds": [0, 1, 2],
        "comparison": {"difference": value, "low": value - 0.03, "high": value + 0.03, "p": p, "seeds": 3},
        "p_holm": min(1.0, 2 * p),
    }


def row(name, group, figures, **changes):
    trained = name not in UNTRAINED
    document = {
        "row": name,
        "group": group,
        "seeds": [0, 1, 2] if name.startswith("modern") else [0],
        "figures": figures,
        "parameters": 412_000 if trained else 0,
        "train_s": 310.0 if trained else 0.0,
        "pseudo_label_rate": 0.71 if name == "modern" else None,
        "convergence": {},
    }
    return {**document, **changes}


def estimate(value, half=0.02):
    return {"value": value, "low": max(0.0, value - half), "high": value + half}


def _row(name, cell):
    labels, masks = cell.split("-")
    group = f"{labels if name in CLASS else 0}-{masks if name in MASK else 0}" if name not in UNTRAINED else cell
    less = {"100": 0.05, "1000": 0.02, "Full": 0.0}[labels]
    figures = {}
    for place, metrics in SETS.items():
        base = (CLASS if "auroc" in metrics else MASK).get(name)
        far = {"nih14/test": 0.24, "montgomery/test": 0.06, "shenzhen/test": 0.08}.get(place, 0.0)
        if base is not None:
            loss = (0.0 if name in UNTRAINED else less) + (far if base > 0.5 else 0.0)
            figures[place] = {metric: _figure(metric, base - loss) for metric in metrics}
    return row(name, group, figures)


def _figure(metric, value):
    if metric.startswith("hausdorff"):
        return estimate(4.1 * (2 - value), 0.4)
    if metric in {"score_std", "ece"}:
        return estimate(0.2 * value)
    return estimate(value - (0.04 if metric == "accuracy" else 0.0))


def _hospitals(name, group, shift):
    held = group.removeprefix("without-")
    classes = {"kermany/test": 0.88, "nih14/test": 0.62}
    masks = {"jsrt/test": 0.92, "montgomery/test": 0.87, "shenzhen/test": 0.88}
    figures = {}
    for place, base in {**classes, **masks}.items():
        metric = "auroc" if place in classes else "dice"
        if (name == "mean-mask" and metric == "auroc") or (name == "majority" and metric == "dice"):
            continue
        if (name == "local-kermany" and metric == "dice") or (name == "local-jsrt" and metric == "auroc"):
            continue
        figures[place] = {metric: estimate(0.5 if name == "majority" else base + shift)}
        if metric == "auroc":
            figures[place] |= {"score_std": estimate(0.17), "ece": estimate(0.15)}
        if place.startswith(held):
            figures[f"{held}/all"] = figures[place]
    curve = {"rounds": 4, "sent_bytes": 23_400_000, "last": 0.91}
    spent = {"kermany": 2.998, "jsrt": 2.41} if name == "epsilon-3" else {}
    spent = {"kermany": 7.993, "jsrt": 6.2} if name == "epsilon-8" else spent
    convergence = {"auroc": curve} if name == "fedavg" else {}
    return row(name, group, figures, convergence=convergence, epsilon_spent=spent)
