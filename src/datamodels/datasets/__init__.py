"""Datasets as one small type: what comes with packages, what lies in standard folders, and arrays."""

from datamodels.datasets.arrays import from_arrays, from_hf
from datamodels.datasets.base import Dataset, Split
from datamodels.datasets.cifar import cifar10
from datamodels.datasets.digits import digit_pictures, digits
from datamodels.datasets.folders import image_folder
from datamodels.datasets.mnist import fashion_mnist, mnist, mnist_5k, read_idx
from datamodels.datasets.registry import load, names, register

_LARGE = {"0 to 4": range(5), "5 to 9": range(5, 10)}
_TOPS = {
    "tops": ["T-shirt/top", "Pullover", "Dress", "Coat", "Shirt"],
    "rest": ["Trouser", "Sandal", "Sneaker", "Bag", "Ankle boot"],
}
_ANIMATE = {
    "animate": ["bird", "cat", "deer", "dog", "frog", "horse"],
    "inanimate": ["airplane", "automobile", "ship", "truck"],
}

register("digits", digits)
register("digits:pictures", digit_pictures)
register("mnist_5k", mnist_5k)
register("mnist_5k:large", lambda: mnist_5k().coarse(_LARGE, "mnist_5k:large", hidden_name="digit"))
register("mnist", mnist)
register("mnist:large", lambda: mnist().coarse(_LARGE, "mnist:large", hidden_name="digit"))
register("fashion_mnist", fashion_mnist)
register("fashion_mnist:tops", lambda: fashion_mnist().coarse(_TOPS, "fashion_mnist:tops", hidden_name="garment"))
register("cifar10", cifar10)
register("cifar10:animate", lambda: cifar10().coarse(_ANIMATE, "cifar10:animate", hidden_name="object"))

__all__ = [
    "Dataset",
    "Split",
    "cifar10",
    "digit_pictures",
    "digits",
    "fashion_mnist",
    "from_arrays",
    "from_hf",
    "image_folder",
    "load",
    "mnist",
    "mnist_5k",
    "names",
    "read_idx",
    "register",
]
