"""Datasets as one small type: what comes with packages, what lies in standard folders, files of samples, and arrays."""

from datamodels.datasets.arrays import from_arrays, from_hf
from datamodels.datasets.base import Dataset, Split
from datamodels.datasets.cells import from_anndata
from datamodels.datasets.cifar import cifar10
from datamodels.datasets.digits import digit_pictures, digits
from datamodels.datasets.folders import image_folder
from datamodels.datasets.genotypes import from_plink
from datamodels.datasets.mnist import fashion_mnist, mnist, mnist_5k, read_idx
from datamodels.datasets.registry import is_file, load, name_of, names, register
from datamodels.datasets.tables import from_table

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
register("mnist_5k:large", lambda: mnist_5k().coarse(_LARGE, name="mnist_5k:large", hidden_name="digit"))
register("mnist", mnist)
register("mnist:large", lambda: mnist().coarse(_LARGE, name="mnist:large", hidden_name="digit"))
register("fashion_mnist", fashion_mnist)
register("fashion_mnist:tops", lambda: fashion_mnist().coarse(_TOPS, name="fashion_mnist:tops", hidden_name="garment"))
register("cifar10", cifar10)
register("cifar10:animate", lambda: cifar10().coarse(_ANIMATE, name="cifar10:animate", hidden_name="object"))

__all__ = [
    "Dataset",
    "Split",
    "cifar10",
    "digit_pictures",
    "digits",
    "fashion_mnist",
    "from_anndata",
    "from_arrays",
    "from_hf",
    "from_plink",
    "from_table",
    "image_folder",
    "is_file",
    "load",
    "mnist",
    "mnist_5k",
    "name_of",
    "names",
    "read_idx",
    "register",
]
