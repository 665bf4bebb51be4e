"""Names that users of other libraries give to activations and losses, and which registered name they stand for."""

import difflib
import types

import numpy as np

# By name without case, underscores, hyphens and spaces.
ACTIVATIONS = {
    "linear": "identity",
    "logistic": "sigmoid",
    "expit": "sigmoid",
    "swish": "silu",
    "sine": "sin",
    "rectifier": "relu",
}
LOSSES = {
    "mse": "mean_squared_error",
    "mseloss": "mean_squared_error",
    "crossentropy": "softmax_cross_entropy",
    "crossentropyloss": "softmax_cross_entropy",
    "bce": "binary_cross_entropy",
    "bcewithlogits": "binary_cross_entropy",
    "bcewithlogitsloss": "binary_cross_entropy",
    "binarycrossentropywithlogits": "binary_cross_entropy",
    "huberloss": "huber",
    "smoothl1loss": "smooth_l1",
    "poissonnll": "poisson",
    "poissonnllloss": "poisson",
    "gaussiannllloss": "gaussian_nll",
    "pinball": "quantile",
    "pinballloss": "quantile",
    "meanpinballloss": "quantile",
    "quantileloss": "quantile",
}
# Packages whose functions are what their names say, but for these.
_PACKAGES = "numpy", "scipy", "math", "torch", "sklearn"
_OTHERS = {
    "binary_cross_entropy": "takes probabilities; 'binary_cross_entropy' here takes logits, as "
    "binary_cross_entropy_with_logits does",
    "BCELoss": "takes probabilities; 'binary_cross_entropy' here takes logits, as BCEWithLogitsLoss does",
    "gaussian_nll_loss": "takes a variance beside the mean; 'gaussian_nll' here takes outputs [means, log-variances]",
    "GaussianNLLLoss": "takes a variance beside the mean; 'gaussian_nll' here takes outputs [means, log-variances]",
}


def resolve(noun, given, names, aliases):
    """The one of ``names`` that was meant; ``ValueError`` that lists them, and says which is the nearest.

    Parameters
    ----------
    noun : str
        What error messages call it.
    given : str or callable
        A name, in whatever case, an alias, or a function or class of NumPy, SciPy, PyTorch or scikit-learn of that
        name.
    names : collection of str
    aliases : dict
        Those above.
    """
    if isinstance(given, str) and given in names:
        return given
    name, trouble = given, ""
    if not isinstance(given, str):
        name, trouble = _name_of(given)
    if name is None:
        raise ValueError(f"{noun}: expected one of {', '.join(sorted(names))}; got {given!r}{trouble}")
    plain = _plain(name)
    same = [known for known in names if _plain(known) == plain]
    if len(same) == 1:
        return same[0]
    if not same and aliases.get(plain) in names:
        return aliases[plain]
    known = {_plain(known): known for known in sorted(names)} | {a: n for a, n in aliases.items() if n in names}
    nearest = difflib.get_close_matches(plain, known, n=1)
    hint = f"; did you mean {known[nearest[0]]!r}?" if nearest else ""
    raise ValueError(f"{noun}: expected one of {', '.join(sorted(names))}; got {given!r}{hint}")


def _plain(name):
    return name.lower().replace("_", "").replace("-", "").replace(" ", "")


def _name_of(given):
    """(name of a function or class of another library, ""), or (None, why it has none)."""
    name, module = getattr(given, "__name__", None), getattr(given, "__module__", None) or ""
    if not callable(given):
        return None, ""
    if name is None:
        return None, (
            ", an object; expected a name, or a function or class whose options are the defaults. nh.losses has losses "
            "with options, and nh.from_torch takes those of PyTorch"
        )
    if name in _OTHERS:
        return None, f", which {_OTHERS[name]}"
    is_written_in_python = isinstance(given, (types.FunctionType, type))
    if not isinstance(given, np.ufunc) and (module or is_written_in_python) and module.split(".")[0] not in _PACKAGES:
        return None, ", a function of another package; expected it to be registered first"
    return name, ""
