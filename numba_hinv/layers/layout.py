"""What follows from the sizes of a chain's layers and the number of samples alone: made once, kept, and shared.

Kernels take nets of small layers from the input to a solution in less time than NumPy needs to work out which runs of
layers go into one compiled call, how much memory that takes, and the like.
"""

from ..kernels.steps.layer_table import layer_table


class Layout:
    """How the layers of a chain lie in the packed buffers for a batch, and what else depends on no more than that.

    Systems of one shape share it, on any number of threads. Nothing in it is ever written to.

    Parameters
    ----------
    chain : Chain
    num_samples : int
        B.
    addresses, ridge, by_parameter : optional
        As for `layer_table`.

    Attributes
    ----------
    table, sizes
        Those of `layer_table`.
    """

    def __init__(self, chain, num_samples, addresses=(0, 0, 0), ridge=None, by_parameter=None):
        self.chain, self.num_samples = chain, num_samples
        self.table, self.sizes = layer_table(chain, num_samples, addresses, ridge, by_parameter)
        self._kept = {}

    def kept(self, function, *arguments):
        """``function(self, *arguments)``, of a function that depends on nothing else; computed at the first call.

        Two threads may compute it at the same time, and then keep the same.
        """
        key = function, arguments
        try:
            return self._kept[key]
        except KeyError:
            found = self._kept[key] = function(self, *arguments)
            return found
