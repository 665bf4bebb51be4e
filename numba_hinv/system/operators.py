"""What H and its inverses have in common as SciPy linear operators: symmetric, of one name for what they act on."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, overload

import numpy as np
from numpy.typing import ArrayLike
from scipy.sparse.linalg import LinearOperator

from ..runtime import tensors
from ..runtime.annotations import AnyTensor, Array, FloatArray
from ..runtime.validation import as_numbers
from . import processor


class _Plain(LinearOperator):
    """An operator without anything but what SciPy gives it."""

    def _matvec(self, x: Array) -> Array:
        raise NotImplementedError


@functools.lru_cache(maxsize=256)
def _attributes(dtype: np.dtype[Any], shape: tuple[int, int]) -> Mapping[str, Any]:
    """What SciPy's constructor leaves: its checks of a shape take as long as a small solve."""
    return vars(_Plain(dtype, shape))


class SymmetricOperator(LinearOperator):
    """A symmetric operator that checks what it acts on before SciPy makes a plain array of it.

    A subclass has ``_matvec`` and ``_matmat`` of arrays, ``_of_device`` of arrays on the device, and the names in
    messages: ``_operand`` of the argument, ``_dense`` of the way to a dense array. ``_is_on_device`` says whether it is
    on a GPU, and takes arrays there as they are.
    """

    _operand, _dense = "x", ""

    @property
    def _is_on_device(self) -> bool:
        return False

    def __init__(self, dtype: np.dtype[Any], shape: tuple[int, int]) -> None:
        self.__dict__.update(_attributes(dtype, shape))

    def _checked(self, x: Any, is_left: bool = False) -> Any:
        """x, once it is sure to have the right shape and no masked entries."""
        if isinstance(x, LinearOperator) or np.isscalar(x):
            return x
        # SciPy's message for sparse matrices is that of the operator's own check.
        shape, size = as_numbers(self._operand, x).shape, self.shape[0]
        if len(shape) not in (1, 2) or shape[-1 if is_left else 0] != size:
            other = f"(k, {size})" if is_left else f"({size}, k)"
            raise ValueError(f"{self._operand}: expected shape ({size},) or {other}, got {shape}")
        return x

    def _of_tensor(self, product: Callable[[Any], Any], x: Any) -> Any:
        """What one of this operator's products gives for a tensor, as a tensor."""
        return tensors.like(product(tensors.plain(x, self._is_on_device)), x)

    @overload
    def dot(self, x: AnyTensor) -> AnyTensor: ...

    @overload
    def dot(self, x: ArrayLike) -> FloatArray: ...

    def dot(self, x: Any) -> Any:
        """Multiply the operator with x, which is what ``@`` does.

        Parameters
        ----------
        x : (P,) or (P, k) array, tensor, number or linear operator
            What to multiply with.

        Returns
        -------
        product : like x
            An array, a tensor if x is one, an array on the GPU if x lies there, or a linear operator.
        """
        if tensors.is_tensor(x):
            return self._of_tensor(self.dot, x)
        return self._of_device(x) if processor.is_on_device(x) else super().dot(self._checked(x))

    @overload
    def __mul__(self, x: AnyTensor) -> AnyTensor: ...

    @overload
    def __mul__(self, x: ArrayLike) -> FloatArray: ...

    def __mul__(self, x: Any) -> Any:
        return self.dot(x)

    @overload
    def __matmul__(self, x: AnyTensor) -> AnyTensor: ...

    @overload
    def __matmul__(self, x: ArrayLike) -> FloatArray: ...

    def __matmul__(self, x: Any) -> Any:
        if tensors.is_tensor(x):
            return self._of_tensor(self.__matmul__, x)
        return self._of_device(x) if processor.is_on_device(x) else super().__matmul__(x)

    @overload
    def __rmul__(self, x: AnyTensor) -> AnyTensor: ...

    @overload
    def __rmul__(self, x: ArrayLike) -> FloatArray: ...

    def __rmul__(self, x: Any) -> Any:
        return super().__rmul__(self._checked(x, is_left=True))

    @overload
    def __rmatmul__(self, x: AnyTensor) -> AnyTensor: ...

    @overload
    def __rmatmul__(self, x: ArrayLike) -> FloatArray: ...

    def __rmatmul__(self, x: Any) -> Any:
        return super().__rmatmul__(self._checked(x, is_left=True))

    @overload
    def matvec(self, x: AnyTensor) -> AnyTensor: ...

    @overload
    def matvec(self, x: ArrayLike) -> FloatArray: ...

    def matvec(self, x: Any) -> Any:
        """Multiply the operator with a vector.

        Parameters
        ----------
        x : (P,) or (P, 1) array, or tensor
            The vector, which may be a column.

        Returns
        -------
        product : array or tensor of the shape of x
            The product.
        """
        if tensors.is_tensor(x):
            return self._of_tensor(self.matvec, x)
        self._checked(x)
        if np.ndim(x) == 2 and np.shape(x)[1] != 1:
            size = self.shape[0]
            raise ValueError(f"{self._operand}: expected shape ({size},) or ({size}, 1), got {np.shape(x)}")
        return super().matvec(x)

    @overload
    def matmat(self, X: AnyTensor) -> AnyTensor: ...

    @overload
    def matmat(self, X: ArrayLike) -> FloatArray: ...

    def matmat(self, X: Any) -> Any:
        """Multiply the operator with a matrix.

        Parameters
        ----------
        X : (P, k) array or tensor
            The matrix.

        Returns
        -------
        product : (P, k) array or tensor
            The product.
        """
        if tensors.is_tensor(X):
            return self._of_tensor(self.matmat, X)
        self._checked(X)
        if np.ndim(X) == 1:
            raise ValueError(f"{self._operand}: expected shape ({self.shape[0]}, k), got {np.shape(X)}")
        return super().matmat(X)

    def rmatvec(self, x: Any) -> Any:
        """Multiply the transpose with a vector: the same as `matvec`, since the matrix is symmetric.

        Parameters
        ----------
        x : (P,) or (P, 1) array, or tensor
            The vector, which may be a column.

        Returns
        -------
        product : array or tensor of the shape of x
            The product.
        """
        return self.matvec(x)

    def rmatmat(self, X: Any) -> Any:
        """Multiply the transpose with a matrix: the same as `matmat`, since the matrix is symmetric.

        Parameters
        ----------
        X : (P, k) array or tensor
            The matrix.

        Returns
        -------
        product : (P, k) array or tensor
            The product.
        """
        return self.matmat(X)

    def _adjoint(self) -> "SymmetricOperator":
        return self

    _transpose = _adjoint

    def __array__(self, dtype: Any = None, copy: Any = None) -> NoReturn:
        """Raise an error: a function that turned this into an array would not work with the matrix."""
        raise TypeError(self._no_array())

    @property
    def flags(self) -> Any:
        """Not available: functions that take arrays only and ask for ``flags`` get an error that says what to do."""
        raise AttributeError(self._no_array())

    def _no_array(self) -> str:
        return (
            f"{type(self).__name__}: expected something that takes linear operators, since this is one and no array; "
            f"{self._dense}"
        )
