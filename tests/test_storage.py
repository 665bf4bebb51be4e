"""Saved factorizations: the same answers to the last bit, and files that are not to be trusted are refused.

A forged file may carry a right checksum: then shapes and whatever the sweeps index with must still be refused.
"""

import io
import json
import os
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from problems import chain

import numba_hinv as nh
from numba_hinv.factorization import FORMAT
from numba_hinv.runtime import archive

CASES = {
    "few samples": (dict(width=4, depth=6, batch=2), 0.1, None, np.float64),
    "many samples, shift": (dict(width=3, depth=4, batch=9), -0.05, None, np.float64),
    "float32 factors": (dict(width=4, depth=5, batch=3), 0.2, "float32", np.float64),
    "float32": (dict(width=4, depth=5, batch=3), 0.2, None, np.float32),
    "scaled states": (dict(width=3, depth=20, batch=2, skip=False, bias=False, gain=0.1), 1e-3, None, np.float64),
    "no layers to spare": (dict(width=3, depth=1, batch=2), 0.1, None, np.float64),
}


def factorization(name):
    kwargs, relative_damping, factor_dtype, dtype = CASES[name]
    p = chain(**kwargs)
    H = p.net.hessian(p.params.astype(dtype), p.X, p.y)
    return H.factorize(relative_damping * H.norm(), factor_dtype), p.right_hand_side(3).astype(dtype)


@pytest.fixture
def saved(tmp_path):
    F, b = factorization("many samples, shift")
    path = tmp_path / "f.npz"
    F.save(path)
    return path, F, b


@pytest.mark.parametrize("name", CASES)
def test_round_trip(name, tmp_path):
    F, b = factorization(name)
    F.save(tmp_path / "f")
    assert os.listdir(tmp_path) == ["f"]
    G = nh.load(str(tmp_path / "f"))
    np.testing.assert_array_equal(G.solve(b), F.solve(b))
    np.testing.assert_array_equal(G.solve(b[:, 0], refine=False), F.solve(b[:, 0], refine=False))
    np.testing.assert_array_equal(G.hessian @ b, F.hessian @ b)
    np.testing.assert_array_equal(G.hessian.gradient, F.hessian.gradient)
    assert G.slogdet() == F.slogdet() and G.inertia == F.inertia and G.num_perturbed == F.num_perturbed
    assert (G.damping, G.dtype, G.factor_dtype, G.hessian.loss) == (F.damping, F.dtype, F.factor_dtype, F.hessian.loss)
    assert G.condition() == F.condition()
    # What was loaded can be used for more: another factorization, another file.
    np.testing.assert_array_equal(G.hessian.factorize(1.0).solve(b), F.hessian.factorize(1.0).solve(b))
    G.save(tmp_path / "g")
    np.testing.assert_array_equal(nh.load(tmp_path / "g").solve(b), F.solve(b))


def test_into_a_fresh_process(saved):
    path, F, b = saved
    program = (
        "import io, sys, numpy as np, numba_hinv as nh; b = np.load(io.BytesIO(sys.stdin.buffer.read()));"
        "np.save(sys.stdout.buffer, nh.load(sys.argv[1]).solve(b))"
    )
    data = io.BytesIO()
    np.save(data, b)
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], input=data.getvalue(), capture_output=True, timeout=300
    )
    assert done.returncode == 0, done.stderr.decode()
    np.testing.assert_array_equal(np.load(io.BytesIO(done.stdout)), F.solve(b))


def test_plain_numpy_can_read_it_without_pickle(saved):
    with np.load(saved[0], allow_pickle=False) as file:
        assert json.loads(file["header"].tobytes())["format"] == FORMAT
        assert all(file[name].dtype != object for name in file.files)


def test_a_failed_save_leaves_the_old_file(saved, monkeypatch, tmp_path):
    path, F, b = saved
    before = path.read_bytes()

    def full(*args, **kwargs):
        args[0].write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(archive.np, "savez", full)
    with pytest.raises(OSError):
        F.save(path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == [path.name]


# ---- files that are refused -----------------------------------------------------------------------------------------


def refused(path, *words):
    with pytest.raises(ValueError) as caught:
        nh.load(path)
    message = str(caught.value)
    assert message.startswith("path: "), message
    for word in words:
        assert word in message, message


def test_truncated_at_every_length(saved):
    path, _, _ = saved
    data = path.read_bytes()
    for length in [*range(0, len(data), 397), len(data) - 1]:
        path.write_bytes(data[:length])
        refused(path)


def test_every_flipped_byte_is_noticed_or_harmless(saved):
    """Bytes of zip's own bookkeeping (dates, say) may change nothing; then the answer is the same to the last bit."""
    path, F, b = saved
    data, expected = path.read_bytes(), F.solve(b)
    rng = np.random.default_rng(0)
    for at in rng.choice(len(data), 300, replace=False):
        changed = bytearray(data)
        changed[at] ^= 1 << rng.integers(8)
        path.write_bytes(changed)
        try:
            G = nh.load(path)
        except ValueError as error:
            assert str(error).startswith("path: ")
        else:
            np.testing.assert_array_equal(G.solve(b), expected)


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04", os.urandom(5000)])
def test_other_files(tmp_path, content):
    path = tmp_path / "f"
    path.write_bytes(content)
    refused(path, "npz")


def test_other_archives(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.ones(3))
    refused(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", header=np.frombuffer(b'{"kind": "cake"}', np.uint8))
    refused(tmp_path / "b.npz")


@pytest.mark.parametrize("path", [None, 3.5, [], object()])
def test_paths_of_a_wrong_type(path, saved):
    with pytest.raises(TypeError, match="path"):
        nh.load(path)
    with pytest.raises(TypeError, match="path"):
        saved[1].save(path)


def test_missing_files(tmp_path, saved):
    with pytest.raises(FileNotFoundError):
        nh.load(tmp_path / "nowhere")
    with pytest.raises(OSError):
        saved[1].save(tmp_path / "nowhere" / "f")


class _Bomb:
    def __reduce__(self):
        return os.mkdir, ("bomb_went_off",)


def test_pickles_are_not_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pickle").write_bytes(pickle.dumps(_Bomb()))
    refused(tmp_path / "pickle")
    np.savez(tmp_path / "f.npz", header=np.array([_Bomb()], dtype=object))
    refused(tmp_path / "f.npz", "header")
    assert not (tmp_path / "bomb_went_off").exists()


def forge(path, change):
    """Rewrite the file after ``change(header, arrays)``, with a checksum that is right."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    header = json.loads(arrays["header"].tobytes())
    change(header, arrays)
    arrays["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    arrays["digest"] = archive.digest(arrays)
    with open(path, "wb") as file:
        np.savez(file, **arrays)


def put(name, at, value):
    def change(header, arrays):
        array = arrays[name].copy()
        array.flat[at] = value
        arrays[name] = array

    return change


def state(**fields):
    return lambda header, arrays: header.update(fields)


def in_chain(name, at, value, **fields):
    def change(header, arrays):
        header["chain"][name][at] = value
        header.update(fields)

    return change


FORGED = {
    "later format": (state(format=FORMAT + 1), f"format {FORMAT + 1}"),
    "no format": (lambda header, arrays: header.pop("format"), "format None"),
    "unknown activation": (lambda h, a: h["network"]["layers"][0].__setitem__(3, "stranger"), "stranger"),
    "unknown loss": (lambda h, a: h["network"]["loss"].update(name="stranger"), "stranger"),
    "unknown loss of an older format": (lambda h, a: h["network"].update(loss_name="stranger"), "stranger"),
    "a loss with a stranger's option": (lambda h, a: h["network"]["loss"]["parameters"].update(delta=1.0), "delta"),
    "a loss without options": (lambda h, a: h["network"]["loss"].pop("reduction"), "reduction"),
    "weights of a wrong type": (state(total_weight="1"), "total_weight"),
    "net with sizes that do not meet": (lambda h, a: h["network"]["layers"][0].__setitem__(2, 7), "layer"),
    "net other than the chain": (lambda h, a: h["network"]["layers"].pop(), "different"),
    "a layer of a wrong type": (lambda h, a: h["network"]["layers"].__setitem__(0, {"a": 1}), "header"),
    "a net of a wrong type": (state(network=7), "header"),
    "a chain of a wrong type": (state(chain=[1, 2]), "header"),
    "a chain that does not meet": (in_chain("n_out", 0, 7, network=None), "meet"),
    "a layer of an unknown kind": (in_chain("kind", 0, 3, network=None), "kind"),
    "a dense layer turned to blocks": (in_chain("kind", 0, 1, network=None), "kind"),
    "more parameters": (in_chain("p", 0, 10**6, network=None), "meet"),
    "a skip of two": (in_chain("skip", 0, 2, network=None), "kind"),
    "a negative size": (in_chain("p", 0, -1, network=None), "sizes"),
    "a size of true": (in_chain("bias", 0, True, network=None), "sizes"),
    "a size beyond integers": (in_chain("p", 0, 10**30, network=None), "sizes"),
    "layers of different number": (lambda h, a: h["chain"]["p"].pop(), "lengths"),
    "a chain without a field": (lambda h, a: h["chain"].pop("p"), "fields"),
    "no gradient, but a loss": (lambda h, a: a.pop("gradient"), "gradient"),
    "a loss of a wrong type": (state(loss="1"), "loss"),
    "fewer samples": (state(num_samples=8), "array"),
    "samples beyond memory": (state(num_samples=10**7), "bytes"),
    "samples beyond counting": (state(num_samples=10**10), "counted"),
    "samples beyond integers": (state(num_samples=10**30), "num_samples"),
    "no samples": (state(num_samples=0), "num_samples"),
    "other dtype": (state(factor_dtype="float32"), "factors"),
    "object dtype": (state(factor_dtype="object"), "factor_dtype"),
    "damping of a wrong type": (state(damping="1"), "damping"),
    "too many exponents": (state(state_exponents=[0, 1]), "state_exponents"),
    "huge exponents": (state(matrix_exponent=2**40), "exponent"),
    "levels of nothing": (state(levels=[]), "header"),
    "levels beyond the net": (state(levels=[[0, 1], [1000, 2]]), "levels"),
    "missing field": (lambda header, arrays: header.pop("norm"), "norm"),
    "extra array": (lambda h, a: a.update(extra=np.ones(3)), "extra"),
    "missing array": (lambda h, a: a.pop("factors_L"), "factors_L"),
    "wider pivots": (lambda h, a: a.update(factors_pivots=a["factors_pivots"].astype(np.int64)), "factors_pivots"),
    "longer factor": (lambda h, a: a.update(factors_Y=np.append(a["factors_Y"], 0.0)), "factors_Y"),
    "row out of range": (put("factors_pivots", 0, 10**6), "permutation"),
    "row below range": (put("factors_pivots", 0, -(10**6)), "permutation"),
    "repeated row": (lambda h, a: put("factors_pivots", 0, a["factors_pivots"][1])(h, a), "permutation"),
    "order out of range": (put("factors_pivots", -1, -1), "permutation"),
    "positive count out of range": (put("factors_num_positive", 0, 10**9), "num_positive"),
    "negative count": (put("factors_num_perturbed", 0, -1), "num_perturbed"),
    "NaN": (put("factors_L", 3, np.nan), "finite"),
    "infinity": (put("params", 3, np.inf), "finite"),
}


@pytest.mark.parametrize("name", FORGED)
def test_forged(saved, name):
    change, word = FORGED[name]
    forge(saved[0], change)
    refused(saved[0], word)


def test_half_a_block_pivot(saved):
    def change(header, arrays):
        pivots = arrays["factors_pivots"].copy()
        sizes = header["chain"]
        m = sizes["n_out"][0] * min(header["num_samples"], sizes["n_in"][0] + 1)
        for k in range(m):
            pivots[k] = pivots[k] if pivots[k] >= 0 else ~pivots[k]
        pivots[0] = ~pivots[0]
        arrays["factors_pivots"] = pivots

    forge(saved[0], change)
    refused(saved[0], "2 x 2")


def test_wrong_checksum(saved):
    path = saved[0]
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    arrays["params"] = arrays["params"] + 1
    with open(path, "wb") as file:
        np.savez(file, **arrays)
    refused(path, "checksum")


def test_a_compressed_bomb_is_not_unpacked(saved):
    """A header that promises much, and an archive that holds it, compressed: the announced size is refused."""
    path = saved[0]
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as written:
        for name, array in arrays.items():
            with written.open(f"{name}.npy", "w", force_zip64=True) as file:
                if name == "factors_Y":
                    np.lib.format.write_array_header_1_0(
                        file, {"descr": "<f8", "fortran_order": False, "shape": (1 << 23,)}
                    )
                    file.write(bytes(1 << 26))
                else:
                    np.lib.format.write_array(file, array)
    refused(path, "factors_Y")


def test_a_registered_activation_must_be_registered_again(tmp_path):
    @nh.register_activation("test_storage_cube")
    def cube(u):
        return u * u * u, 3 * u * u, 6 * u

    net = nh.Network([nh.Dense(2, 2, "test_storage_cube")], "mean_squared_error")
    F = net.hessian(np.arange(6) / 6, np.ones((2, 2)), np.zeros((2, 2))).factorize(1.0)
    F.save(tmp_path / "f")
    np.testing.assert_array_equal(nh.load(tmp_path / "f").solve(np.ones(6)), F.solve(np.ones(6)))
    program = "import sys, numba_hinv as nh; nh.load(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "f")], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 1 and "ValueError: path:" in done.stderr and "test_storage_cube" in done.stderr
