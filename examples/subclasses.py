"""Hidden classes, found by what predictions rest on.

Networks learn coarse labels (tops against the rest, animate against inanimate, large digits against small), each on its own
tenth of the training set. Test images whose ridge datamodels are alike rest on the same training images, and
form clusters that agree with the classes that no network was told of; the same pipeline on raw pixels is the baseline.

    python examples/subclasses.py                                    # Fashion-MNIST
    python examples/subclasses.py --data cifar10 --models 60000      # on a GPU
    python examples/subclasses.py --quick

Run again with more --models it trains the missing ones, fits again and draws again. The page is index.html.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from common import PERCEPTRON, RESNET, TINY, Setting, options, parts, run, said

from datamodels.experiment import Fit, run_experiment
from datamodels.regression.estimators import Ridge

ALPHA = 0.1
SETTINGS = {
    "fashion_mnist": Setting("fashion_mnist:tops[10000,2000]", PERCEPTRON, 5000),
    "cifar10": Setting("cifar10:animate[25000,2000]", RESNET, 60000),
    "mnist_5k": Setting("mnist_5k:large", PERCEPTRON, 4000),
}
QUICK = Setting("mnist_5k:large[600,200]", TINY, 96)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Train, fit, judge, draw; print the agreement with the hidden classes. Returns what `run_experiment` does."""
    given = options(__doc__, "subclasses", SETTINGS, QUICK, argv)
    data = given.task.data
    results = run_experiment(
        given.out,
        title=f"{' or '.join(data.class_names)}: what did no label say?",
        parts=parts("tenth", given.task, ALPHA, given.models),
        fits=[Fit("ridge", Ridge(), "tenth", "tenth_test")],
        neighbours="ridge",
        embedding="ridge",
        commands=[given.command],
        jobs=given.jobs,
    )
    groups = results["subgroups"]
    print(f"ridge on {given.models:,} networks: {said(results['attributions']['ridge'])}")
    for what, suffix in (("datamodels", ""), ("raw pixels", "_baseline")):
        nmi, ari = groups[f"nmi{suffix}"], groups[f"ari{suffix}"]
        print(f"clusters of {what} against the {data.hidden_name}: NMI {nmi:.3f}, ARI {ari:.3f}")
    print(f"page: {results['page']}")
    return results


if __name__ == "__main__":
    run(main)
