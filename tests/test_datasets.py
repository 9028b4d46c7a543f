import gzip
import hashlib
import http.server
import threading
import time

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from scipy.io import mmwrite
from sklearn.datasets import load_digits

from trvae_sc import datasets
from trvae_sc.datasets import _download, _public
from trvae_sc.errors import InputError

# -- digits ---------------------------------------------------------------------------------------


def test_digits_in_every_style_are_those_of_scikit_learn():
    source = load_digits()
    adata = datasets.digits(["normal", "inverted", "mirrored", "rotated"])
    assert adata.shape == (4 * 1797, 64)
    assert adata.X.dtype == np.float32
    assert list(adata.obs["style"].cat.categories) == ["normal", "inverted", "mirrored", "rotated"]
    assert list(adata.obs["digit"].cat.categories) == [str(digit) for digit in range(10)]
    assert list(adata.uns["image_shape"]) == [8, 8]
    assert adata.obs_names.is_unique
    for style, expected in (
        ("normal", source.images),
        ("inverted", 16 - source.images),
        ("mirrored", source.images[:, :, ::-1]),
        ("rotated", np.stack([np.rot90(image) for image in source.images])),
    ):
        cells = adata[adata.obs["style"] == style]
        np.testing.assert_array_equal(cells.X.reshape(-1, 8, 8), expected)
        np.testing.assert_array_equal(cells.obs["digit"].astype(int), source.target)
        np.testing.assert_array_equal(cells.obs["image"], np.arange(1797))
    pixel = adata.var.loc["pixel_2_5"]
    assert (pixel["row"], pixel["column"]) == (2, 5)
    normal = adata[adata.obs["style"] == "normal", "pixel_2_5"].X[:, 0]
    np.testing.assert_array_equal(normal, source.images[:, 2, 5])


@pytest.mark.parametrize("style", ["thick", "outlined"])
def test_digits_thick_and_outlined_are_drawn_image_by_image(style):
    adata = datasets.digits([style])
    for i in (0, 7, 1796):
        image = load_digits().images[i]
        if style == "thick":
            padded = np.pad(image, ((0, 1), (0, 1)))
            expected = np.max([padded[r : r + 8, c : c + 8] for r in (0, 1) for c in (0, 1)], 0)
        else:
            around = [np.roll(np.pad(image, 1), s, a)[1:-1, 1:-1] for s in (-1, 1) for a in (0, 1)]
            expected = np.max([image, *around], axis=0) - image
        np.testing.assert_array_equal(adata.X[i].reshape(8, 8), expected)
    assert adata.X.min() == 0.0
    assert adata.X.max() == 16.0


@pytest.mark.parametrize(
    ("style", "share"),
    [
        ("dark", 0.20),
        ("slanted", 0.51),
        ("shifted", 0.54),
        ("thick", 0.26),
        ("inverted", 0.28),
        ("rotated", 0.36),
        ("outlined", 0.69),
        ("mirrored", 1.10),
    ],
)
def test_digits_leave_a_mean_shift_the_share_that_the_docstring_states(style, share):
    adata = datasets.digits(["normal", style])
    means = adata.to_df().groupby([adata.obs["style"], adata.obs["digit"]], observed=True).mean()
    change = (means.loc[style] - means.loc["normal"]).to_numpy()
    others = (change.sum(0) - change) / 9
    assert ((change - others) ** 2).sum() / (change**2).sum() == pytest.approx(share, abs=0.005)


def test_digits_dark_shifted_and_slanted_are_drawn_pixel_by_pixel():
    image = load_digits().images[5]
    drawn = {s: datasets.digits([s]).X[5].reshape(8, 8) for s in ("dark", "shifted", "slanted")}
    np.testing.assert_array_equal(drawn["dark"], image / 2)
    right = np.pad(image, ((0, 0), (1, 0)))[:, :8]
    left = np.pad(image, ((0, 0), (0, 1)))[:, 1:]
    np.testing.assert_array_equal(drawn["shifted"], right)
    expected = np.concatenate([right[:3], image[3:5], left[5:]])
    np.testing.assert_array_equal(drawn["slanted"], expected)


def test_digits_split_between_styles_share_no_image():
    adata = datasets.digits(["normal", "thick", "mirrored"], split=True, seed=3)
    assert sorted(adata.obs["image"]) == list(range(1797))
    sizes = adata.obs.groupby(["digit", "style"], observed=True).size().unstack()
    assert (sizes.max(axis=1) - sizes.min(axis=1)).max() <= 1
    whole = datasets.digits(["normal", "thick", "mirrored"])
    np.testing.assert_array_equal(adata.X, whole[adata.obs_names].X)
    again = datasets.digits(["normal", "thick", "mirrored"], split=True, seed=3)
    other = datasets.digits(["normal", "thick", "mirrored"], split=True, seed=4)
    assert list(adata.obs_names) == list(again.obs_names) != list(other.obs_names)


def test_digits_turned_by_right_angles_keep_all_their_pixels():
    """By 180, 270 or 360 degrees pixels at the edge were lost: by rounding they came from outside."""
    images = load_digits().images
    for turns in (-3, -2, -1, 0, 1, 2, 3, 4):
        styles = pd.DataFrame({"angle": [90.0 * turns]}, index=["turned"])
        found = datasets.digits(styles).X.reshape(images.shape)
        np.testing.assert_allclose(found, np.rot90(images, turns, axes=(1, 2)), atol=1e-4)


@pytest.mark.parametrize("styles", [["bold"], [], ["thick", "thick"]])
def test_digits_name_the_styles_there_are(styles):
    with pytest.raises(InputError, match=r"styles are \[.*name one or more of \['normal', 'thick'"):
        datasets.digits(styles)


# -- simulated cells ------------------------------------------------------------------------------


def test_simulated_pairs_are_one_cell_under_every_condition():
    conditions = ["control", "a", "b"]
    adata = datasets.simulate(
        302, 40, n_labels=4, conditions=conditions, specificity=0.0, heterogeneity=1.0, depth=1e8,
        dispersion=1e8, paired=True,
    )  # fmt: skip
    of_pair = adata.obs.groupby("pair")
    assert adata.n_obs == 300
    assert of_pair.size().tolist() == [3] * 100
    assert of_pair["cell_type"].nunique().eq(1).all()
    assert (
        of_pair["condition"].agg(list).map(sorted).map(list).tolist() == [sorted(conditions)] * 100
    )
    assert adata.obs["cell_type"].nunique() == 4
    assert "pair" not in datasets.simulate(100, 40).obs
    # without specificity a cell changes by its condition's response, whatever its state
    logs = np.log(adata.X.toarray() + 0.5).reshape(100, 3, 40)
    logs = logs[..., (logs > 8).all((0, 1))]
    assert logs.shape[2] > 15
    response = logs[:, 1:] - logs[:, :1]
    response -= response.mean(2, keepdims=True)
    assert response.std(0).max() < 0.03
    assert logs.std(0).max() > 1.0


# -- simulated doses -------------------------------------------------------------------------------


def test_simulated_doses_have_the_design_that_was_asked_for():
    adata = datasets.simulate_doses({"A": [1, 3], "B": [0.5]}, n_cells=5, n_genes=30, n_labels=3)
    cells = adata.obs.groupby(["cell_type", "drug", "dose"], observed=True).size()
    assert (cells == 5).all()
    assert len(cells) == 3 * 4
    assert set(cells["type_1"].index) == {("none", 0.0), ("A", 1.0), ("A", 3.0), ("B", 0.5)}
    np.testing.assert_allclose(adata.obs["total_counts"], np.asarray(adata.X.sum(1)).ravel())
    assert adata.obs_names.is_unique
    by_default = datasets.simulate_doses(n_cells=2, n_genes=20, n_labels=2).obs
    doses = by_default.groupby("drug", observed=True)["dose"].unique().map(list).to_dict()
    assert doses == {"none": [0.0], "A": [1.0, 3.0, 10.0], "B": [1.0, 10.0]}


def test_simulated_doses_level_off_as_stated():
    options = {"n_cells": 3000, "n_genes": 40, "n_labels": 2, "half_dose": 2.0, "seed": 1}
    adata = datasets.simulate_doses({"A": [2, 6, 1e9]}, **options)
    log_share = np.log(adata.varm["true_share"])
    np.testing.assert_allclose(np.exp(log_share).sum(), 1)

    def change(dose):
        """Return the change of logs, up to what makes shares add up to 1."""
        of = log_share[f"type_1|A|{dose:g}"] - log_share["type_1|none|0"]
        return of - of.iloc[0]

    np.testing.assert_allclose(change(2), 0.5 * change(1e9), atol=1e-6)
    np.testing.assert_allclose(change(6), 0.75 * change(1e9), atol=1e-6)
    assert change(1e9).abs().max() > 0.5
    own = (adata.obs["cell_type"] == "type_1") & (adata.obs["dose"] == 6)
    counts = np.asarray(adata.X[own.to_numpy()].sum(0)).ravel()
    expected = np.exp(log_share["type_1|A|6"]) * counts.sum()
    z = (counts - expected) / np.sqrt(expected)  # Poisson
    assert z.abs().max() < 4.5
    assert adata.obs["total_counts"].median() == pytest.approx(2000, rel=0.03)


def test_simulated_doses_are_repeatable():
    first, again, other = (
        datasets.simulate_doses(n_cells=3, n_genes=20, n_labels=2, seed=seed) for seed in (0, 0, 1)
    )
    assert (first.X != again.X).nnz == 0
    assert (first.X != other.X).nnz > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *(({name: -1}, name) for name in ("n_genes", "n_labels", "n_cells", "seed", "depth_sd")),
        *(({name: 0}, name) for name in ("depth", "dispersion")),
        ({"n_cells": 50.5}, "n_cells"),
        ({"effect_size": float("nan")}, "effect_size"),
        ({"heterogeneity": -1.0}, "heterogeneity"),
        ({"conditions": ("a", "a")}, "two different names"),
        ({"conditions": "ab"}, "two different names"),
        ({"conditions": 3}, "two different names"),
    ],
)
def test_simulated_cells_say_what_is_wrong(options, message):
    with pytest.raises(InputError, match=message):
        datasets.simulate(**{"n_cells": 100, "n_genes": 10, "n_labels": 2} | options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"doses": {"none": [1]}}, "without a drug"),
        ({"doses": {"A": []}}, "Doses of 'A'"),
        ({"doses": {"A": 0}}, "above 0"),
        ({"doses": {"A": [0, 1]}}, "above 0"),
        ({"doses": {"A": [1, 1.0]}}, "named once"),
        ({"doses": {"A": [float("nan")]}}, "above 0"),
        ({"half_dose": 0.0}, "half_dose"),
        ({"n_cells": 0}, "n_cells"),
        ({"depth_sd": -1.0}, "depth_sd"),
        ({"depth": -1.0}, "depth is -1"),
        ({"specificity": 2.0}, "specificity"),
    ],
)
def test_simulated_doses_say_what_is_wrong(options, message):
    with pytest.raises(InputError, match=message):
        datasets.simulate_doses(**options)


# -- load -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mine", "mine.h5ad"])
def test_load_reads_by_name_from_the_folder(make_adata, tmp_path, monkeypatch, name):
    folder = tmp_path / "data"
    folder.mkdir()
    expected = make_adata()
    expected.write_h5ad(folder / "mine.h5ad")
    make_adata(seed=1).write_h5ad("mine.h5ad")  # the folder comes first
    monkeypatch.setenv("TRVAE_SC_DATA", str(folder))
    adata = datasets.load(name)
    assert (adata.X != expected.X).nnz == 0
    pd.testing.assert_frame_equal(adata.obs, expected.obs)


@pytest.mark.parametrize("name", ["sub/mine.v2", "sub/mine.v2.h5ad"])
@pytest.mark.parametrize("folder", ["", "elsewhere"])
def test_load_reads_a_path(make_adata, tmp_path, monkeypatch, name, folder):
    monkeypatch.setenv("TRVAE_SC_DATA", folder)
    (tmp_path / "sub").mkdir()
    make_adata().write_h5ad(tmp_path / "sub" / "mine.v2.h5ad")
    for path in (name, tmp_path / name):
        assert datasets.load(path).shape == (120, 30)


@pytest.mark.parametrize("name", ["a.txt", "a.h5ad"])
def test_load_names_a_file_that_it_cannot_read(tmp_path, monkeypatch, name):
    monkeypatch.delenv("TRVAE_SC_DATA", raising=False)
    path = tmp_path / name
    path.write_text("not an h5ad file")
    with pytest.raises(InputError, match=name):
        datasets.load(path)


def test_load_says_what_is_there(make_adata, tmp_path, monkeypatch):
    for name in ("b", "a"):
        make_adata().write_h5ad(tmp_path / f"{name}.h5ad")
    monkeypatch.delenv("TRVAE_SC_DATA", raising=False)
    with pytest.raises(InputError, match=r"No file 'c\.h5ad'\. .* variable TRVAE_SC_DATA to"):
        datasets.load("c")
    monkeypatch.setenv("TRVAE_SC_DATA", str(tmp_path))
    with pytest.raises(InputError, match=r"No 'c\.h5ad' in .* \['a\.h5ad', 'b\.h5ad'\]\."):
        datasets.load("c")
    monkeypatch.setenv("TRVAE_SC_DATA", str(tmp_path / "none"))
    with pytest.raises(InputError, match=r"TRVAE_SC_DATA is '.*none', which does not exist"):
        datasets.load("c")
    monkeypatch.setenv("TRVAE_SC_DATA", str(tmp_path / "a.h5ad"))
    with pytest.raises(InputError, match=r"'.*a\.h5ad', which is no folder\. Name a folder"):
        datasets.load("c")


# -- download -------------------------------------------------------------------------------------

BODY = gzip.compress(np.random.default_rng(0).bytes(300_000), mtime=0)


class Server:
    """A server of files, on a thread; the connection can be cut after some bytes of the body."""

    def __init__(self, files, *, ranges=True, cuts=(), headers=()):
        self.files, self.ranges, self.cuts, self.headers = files, ranges, list(cuts), dict(headers)
        self.requests, self.served = [], 0  # the Range header of each request; bytes of bodies
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                outer.answer(self)

            def log_message(self, *args):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.01,))
        self.thread.start()

    def answer(self, handler):
        asked = handler.headers.get("Range")
        self.requests.append(asked)
        body = self.files.get(handler.path.lstrip("/"))
        if body is None:
            handler.send_error(404)
            return
        first = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.ranges else 0
        if first >= len(body):
            handler.send_error(416)
            return
        handler.send_response(206 if asked and self.ranges else 200)
        handler.send_header("Content-Length", str(len(body) - first))
        for name, value in self.headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        sent = body[first:][: self.cuts.pop(0) if self.cuts else None]
        self.served += len(sent)  # before the client can have all of it
        handler.wfile.write(sent)

    def url(self, name):
        return f"http://127.0.0.1:{self.http.server_port}/{name}"

    def stop(self):
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()


@pytest.fixture
def serve(monkeypatch):
    """Return a starter of servers; waiting before another attempt takes no time."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    running = []

    def serve(files, **options):
        running.append(Server(files, **options))
        return running[-1]

    yield serve
    for server in running:
        server.stop()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Return the folder of downloads."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("TRVAE_SC_DATA", str(folder))
    return folder


def names(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def test_download_once(serve, cache):
    server = serve({"a.gz": BODY})
    path = _download.fetch(server.url("a.gz"), progress=False)
    assert path == cache / "a.gz"
    assert path.read_bytes() == BODY
    assert names(cache) == ["a.gz", "a.gz.sha256"]
    digest = hashlib.sha256(BODY).hexdigest()
    assert (cache / "a.gz.sha256").read_text() == f"{digest}  a.gz\n"
    assert _download.fetch(server.url("a.gz"), progress=False) == path
    assert server.requests == [None]
    assert server.served == len(BODY)


def test_download_goes_to_the_cache_of_the_user(serve, tmp_path, monkeypatch):
    monkeypatch.delenv("TRVAE_SC_DATA", raising=False)
    monkeypatch.setattr("pooch.os_cache", lambda name: tmp_path / "user" / name)
    path = _download.fetch(serve({"a.gz": BODY}).url("a.gz"), progress=False)
    assert path == tmp_path / "user" / "trvae_sc" / "a.gz"


def test_a_connection_that_is_cut_is_resumed_at_once(serve, cache):
    server = serve({"a.gz": BODY}, cuts=[100_000])
    assert _download.fetch(server.url("a.gz"), progress=False).read_bytes() == BODY
    assert server.requests == [None, "bytes=100000-"]
    assert server.served == len(BODY)
    assert names(cache) == ["a.gz", "a.gz.sha256"]


def test_a_download_that_failed_is_resumed_by_the_next_call(serve, cache):
    server = serve({"a.gz": BODY}, cuts=[100_000, 50_000])
    with pytest.raises(
        ConnectionError, match=rf"cut after 150000 of {len(BODY)} bytes; call again to resume"
    ):
        _download.fetch(server.url("a.gz"), progress=False)
    assert names(cache) == ["a.gz.part"]
    assert (cache / "a.gz.part").read_bytes() == BODY[:150_000]
    assert _download.fetch(server.url("a.gz"), progress=False).read_bytes() == BODY
    assert server.requests == [None, "bytes=100000-", "bytes=150000-"]
    assert server.served == len(BODY)
    assert names(cache) == ["a.gz", "a.gz.sha256"]


def test_without_ranges_a_download_starts_again(serve, cache):
    server = serve({"a.gz": BODY}, cuts=[100_000], ranges=False)
    assert _download.fetch(server.url("a.gz"), progress=False).read_bytes() == BODY
    assert server.requests == [None, "bytes=100000-"]
    assert server.served == 100_000 + len(BODY)


@pytest.mark.parametrize("part", [BODY, BODY + b"more", b"other" * 1000])
def test_a_partial_file_that_does_not_fit_is_dropped(serve, cache, part):
    """It may be complete, too long, or of another file of that name."""
    cache.mkdir()
    (cache / "a.gz.part").write_bytes(part)
    server = serve({"a.gz": BODY})
    assert _download.fetch(server.url("a.gz"), progress=False).read_bytes() == BODY
    assert server.requests == [f"bytes={len(part)}-", None]
    assert names(cache) == ["a.gz", "a.gz.sha256"]


def test_a_file_that_the_server_calls_encoded_is_kept_as_it_is(serve, cache):
    server = serve({"a.gz": BODY}, headers={"Content-Encoding": "x-gzip"})
    assert _download.fetch(server.url("a.gz"), progress=False).read_bytes() == BODY


def test_a_missing_file_names_address_and_place(serve, cache):
    server = serve({})
    url = server.url("a.gz")
    with pytest.raises(ConnectionError, match="404 Client Error") as caught:
        _download.fetch(url, progress=False)
    assert f"Cannot download {url}: " in str(caught.value)
    assert f"put the file at {cache / 'a.gz'}." in str(caught.value)
    assert names(cache) == []


def test_offline_names_address_and_place_and_takes_the_file_put_there(serve, cache):
    server = serve({})
    url = server.url("a.gz")
    server.http.server_close()
    with pytest.raises(ConnectionError) as caught:
        _download.fetch(url, progress=False)
    assert f"Cannot download {url}: " in str(caught.value)
    assert f"put the file at {cache / 'a.gz'}." in str(caught.value)
    (cache / "a.gz").write_bytes(BODY)
    assert _download.fetch(url, progress=False).read_bytes() == BODY
    assert names(cache) == ["a.gz", "a.gz.sha256"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (BODY[:-1000], "no intact gzip file .*ended before"),
        (BODY[:1000] + b"?" + BODY[1001:], "no intact gzip file"),
        (b"<html>moved</html>", r"no intact gzip file \(Not a gzipped file"),
    ],
)
def test_a_damaged_download_is_refused(serve, cache, body, message):
    server = serve({"a.gz": body})
    with pytest.raises(InputError, match=message) as caught:
        _download.fetch(server.url("a.gz"), progress=False)
    assert f"put the file at {cache / 'a.gz'}." in str(caught.value)
    assert names(cache) == []


def test_a_damaged_file_put_by_hand_is_refused(cache):
    cache.mkdir()
    (cache / "a.gz").write_bytes(BODY[:-1000])
    with pytest.raises(InputError, match=r"no intact gzip file .* Remove .*a\.gz and get it again"):
        _download.fetch("http://127.0.0.1:9/a.gz")
    assert names(cache) == ["a.gz"]


def test_later_corruption_is_noticed(serve, cache):
    server = serve({"a.gz": BODY})
    path = _download.fetch(server.url("a.gz"), progress=False)
    path.write_bytes(gzip.compress(b"another"))
    with pytest.raises(
        InputError, match=r"has sha256 .* should have .* and a\.gz\.sha256 to get it"
    ):
        _download.fetch(server.url("a.gz"), progress=False)
    assert len(server.requests) == 1
    for file in (path, cache / "a.gz.sha256"):
        file.unlink()
    assert _download.fetch(server.url("a.gz"), progress=False).read_bytes() == BODY


def test_a_known_checksum_is_compared(serve, cache):
    server = serve({"a.gz": BODY})
    with pytest.raises(InputError, match="does not match the known hash"):
        _download.fetch(server.url("a.gz"), known_hash="0" * 64, progress=False)
    assert names(cache) == []
    known = hashlib.sha256(BODY).hexdigest()
    path = _download.fetch(server.url("a.gz"), known_hash=known, progress=False)
    assert path.read_bytes() == BODY
    assert names(cache) == ["a.gz"]
    with pytest.raises(
        InputError, match=rf"a\.gz has sha256 {known}, .* 0{{64}}\. Remove it to get"
    ):
        _download.fetch(server.url("a.gz"), known_hash="0" * 64, progress=False)


def test_progress_is_shown_if_asked_for(serve, cache, capsys):
    server = serve({"a.gz": BODY, "b.gz": BODY})
    _download.fetch(server.url("a.gz"), progress=False)
    assert "%|" not in capsys.readouterr().err
    _download.fetch(server.url("b.gz"))
    shown = capsys.readouterr().err
    assert "b.gz: 100%|" in shown
    assert "300k/300k" in shown


def test_threads_that_want_one_file_download_it_once(serve, cache):
    server = serve({"a.gz": BODY})
    found = []
    threads = [
        threading.Thread(
            target=lambda: found.append(_download.fetch(server.url("a.gz"), progress=False))
        )
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [cache / "a.gz"] * 3
    assert server.served == len(BODY)


# -- kang18 ---------------------------------------------------------------------------------------

GENES = ["ENSG01\tISG15", "ENSG02\tPOLR2J4", "ENSG03\tCD14", "ENSG04\tPOLR2J4", "ENSG05\tNA"]
#: barcode: (donor, cell type, call); TTT-1 is in both conditions
KANG = {
    "ctrl": {
        "AAA-1": ("107", "CD4 T cells", "singlet"),
        "CCC-1": ("1016", "B cells", "doublet"),
        "TTT-1": ("101", "CD14+ Monocytes", "singlet"),
        "GGG-1": ("101", "NA", "singlet"),
    },
    "stim": {
        "TTT-1": ("1488", "B cells", "singlet"),
        "ACG-1": ("107", "CD4 T cells", "ambs"),
        "CAT-1": ("107", "CD14+ Monocytes", "singlet"),
    },
}
COUNTS = {
    arm: np.random.default_rng(len(cells)).poisson(1.0, (len(GENES), len(cells)))
    for arm, cells in KANG.items()
}


def market(counts, tmp_path):
    """Return a matrix as the deposited ones are: coordinates of real numbers, genes x cells."""
    mmwrite(tmp_path / "x.mtx", sparse.coo_matrix(counts), field="real", symmetry="general")
    return (tmp_path / "x.mtx").read_bytes()


def kang_files(tmp_path, **changes):
    """Return the six files, compressed. The header of the annotation lacks the first column."""
    rows = ["tsne1\ttsne2\tind\tstim\tcluster\tcell\tmultiplets"]
    for arm, cells in KANG.items():
        for i, (barcode, (donor, cell, call)) in enumerate(reversed(cells.items())):
            name = barcode + "1" * (arm == "stim" and barcode in KANG["ctrl"])
            rows.append(f"{name}\t{i}.5\t-{i}.25\t{donor}\t{arm}\t{i}\t{cell}\t{call}")
    texts = {
        "GSM2560248_2.1.mtx.gz": market(COUNTS["ctrl"], tmp_path),
        "GSM2560248_barcodes.tsv.gz": "\n".join(KANG["ctrl"]).encode(),
        "GSM2560249_2.2.mtx.gz": market(COUNTS["stim"], tmp_path),
        "GSM2560249_barcodes.tsv.gz": "\n".join(KANG["stim"]).encode(),
        "GSE96583_batch2.genes.tsv.gz": "\n".join(GENES).encode(),
        "GSE96583_batch2.total.tsne.df.tsv.gz": "\n".join(rows).encode(),
    } | changes
    return {name: gzip.compress(text) for name, text in texts.items()}


@pytest.fixture
def kang(serve, cache, tmp_path, monkeypatch):
    """Return a server of the files, from which they are downloaded; arguments replace some."""

    def kang(**changes):
        server = serve(kang_files(tmp_path, **changes))
        urls = {key: url.rsplit("/", 1)[-1] for key, (url, _) in _public._KANG.items()}
        fake = {key: (server.url(name), None) for key, name in urls.items()}
        monkeypatch.setattr(_public, "_KANG", fake)
        return server

    return kang


def test_kang18_returns_annotated_singlets(kang):
    server = kang()
    adata = datasets.kang18(progress=False)
    assert list(adata.obs_names) == [
        "control_AAA-1",
        "control_TTT-1",
        "stimulated_TTT-1",
        "stimulated_CAT-1",
    ]
    expected = np.vstack([COUNTS["ctrl"].T[[0, 2]], COUNTS["stim"].T[[0, 2]]])
    np.testing.assert_array_equal(adata.X.toarray(), expected)
    assert isinstance(adata.X, sparse.csr_matrix)
    assert adata.X.dtype == np.float32
    assert list(adata.obs["condition"]) == ["control", "control", "stimulated", "stimulated"]
    assert list(adata.obs["condition"].cat.categories) == ["control", "stimulated"]
    assert list(adata.obs["cell_type"]) == [
        *("CD4 T cells", "CD14+ Monocytes", "B cells", "CD14+ Monocytes")
    ]
    assert list(adata.obs["cell_type"].cat.categories) == [
        *("B cells", "CD14+ Monocytes", "CD4 T cells")
    ]
    assert list(adata.obs["donor"]) == ["107", "101", "1488", "107"]
    np.testing.assert_array_equal(
        adata.obsm["X_tsne"], [[3.5, -3.25], [1.5, -1.25], [2.5, -2.25], [0.5, -0.25]]
    )
    assert list(adata.var_names) == ["ISG15", "POLR2J4", "CD14", "POLR2J4-1", "NA"]
    assert list(adata.var["gene_id"]) == ["ENSG01", "ENSG02", "ENSG03", "ENSG04", "ENSG05"]
    assert len(server.requests) == 6
    again = datasets.kang18(progress=False)
    assert len(server.requests) == 6
    assert (again.X != adata.X).nnz == 0


def test_kang18_keeps_what_is_asked_for(kang, tmp_path):
    kang()
    doublets = datasets.kang18(keep_doublets=True, progress=False)
    assert list(doublets.obs["multiplets"]) == [
        *("singlet", "doublet", "singlet", "singlet", "ambs", "singlet")
    ]
    assert doublets.obs["cell_type"].notna().all()
    unannotated = datasets.kang18(keep_unannotated=True, progress=False)
    assert list(unannotated.obs_names[unannotated.obs["cell_type"].isna()]) == ["control_GGG-1"]
    everything = datasets.kang18(keep_doublets=True, keep_unannotated=True, progress=False)
    np.testing.assert_array_equal(everything.X.toarray().T, np.hstack(list(COUNTS.values())))
    everything.write_h5ad(tmp_path / "kang.h5ad")
    assert datasets.load(tmp_path / "kang").shape == (7, 5)


def test_kang18_refuses_files_that_disagree(kang, cache, tmp_path):
    kang(**{"GSM2560249_2.2.mtx.gz": market(COUNTS["ctrl"], tmp_path)})
    with pytest.raises(
        InputError, match=r"2\.2\.mtx\.gz has 4 cells x 5 genes, but .* has 3 cells and .* 5 genes"
    ):
        datasets.kang18(progress=False)
    for path in cache.iterdir():
        path.unlink()
    kang(**{"GSM2560249_barcodes.tsv.gz": b"TTT-1\nACG-1\nCCC-1"})
    with pytest.raises(InputError, match="3 cells with stim 'stim', 2 of which are among the 3 of"):
        datasets.kang18(progress=False)


def test_kang18_offline_says_where_the_file_goes(cache, monkeypatch):
    known = {key: (f"http://127.0.0.1:9/{key}.gz", None) for key in _public._KANG}
    monkeypatch.setattr(_public, "_KANG", known)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with pytest.raises(ConnectionError, match=r"put the file at .*cache.genes\.gz\."):
        datasets.kang18(progress=False)


def test_addresses_are_those_of_the_archive():
    urls = [*(url for url, _ in _public._KANG.values()), _public._HABER]
    geo = "https://ftp.ncbi.nlm.nih.gov/geo/"
    assert sorted(url.removeprefix(geo) for url in urls) == [
        "samples/GSM2560nnn/GSM2560248/suppl/GSM2560248_2.1.mtx.gz",
        "samples/GSM2560nnn/GSM2560248/suppl/GSM2560248_barcodes.tsv.gz",
        "samples/GSM2560nnn/GSM2560249/suppl/GSM2560249_2.2.mtx.gz",
        "samples/GSM2560nnn/GSM2560249/suppl/GSM2560249_barcodes.tsv.gz",
        "series/GSE92nnn/GSE92332/suppl/GSE92332_SalmHelm_UMIcounts.txt.gz",
        "series/GSE96nnn/GSE96583/suppl/GSE96583_batch2.genes.tsv.gz",
        "series/GSE96nnn/GSE96583/suppl/GSE96583_batch2.total.tsne.df.tsv.gz",
    ]


# -- haber17 --------------------------------------------------------------------------------------

GUT = [
    "B1_AAACATACCACAAC_Control_Enterocyte.Progenitor",
    "B1_AAACATACCACAAC_Salmonella_Stem",
    "B3_AAACGCACGAGGAC_Hpoly.Day3_TA.Early",
    "B4_AAAGGCCTTTTGCT_Hpoly.Day10_Stem",
]


def gut(serve, monkeypatch, *, header=None, n_genes=7):
    """Serve a table as the deposited one is (no name above the genes); return its counts."""
    counts = np.random.default_rng(0).poisson(0.8, (n_genes, len(GUT)))
    rows = [f"Gene{i}\t" + "\t".join(map(str, row)) for i, row in enumerate(counts)]
    table = "\n".join(["\t".join(GUT) if header is None else header, *rows]) + "\n"
    server = serve({"salmhelm.txt.gz": gzip.compress(table.encode())})
    monkeypatch.setattr(_public, "_HABER", server.url("salmhelm.txt.gz"))
    return counts


@pytest.mark.parametrize("header", [None, "\t" + "\t".join(GUT)])
@pytest.mark.parametrize("at_once", [500, 3])
def test_haber17(serve, cache, monkeypatch, header, at_once):
    monkeypatch.setattr(_public, "_GENES_AT_ONCE", at_once)
    counts = gut(serve, monkeypatch, header=header)
    adata = datasets.haber17(progress=False)
    np.testing.assert_array_equal(adata.X.toarray(), counts.T)
    assert isinstance(adata.X, sparse.csr_matrix)
    assert adata.X.dtype == np.float32
    assert list(adata.obs_names) == GUT
    assert list(adata.var_names) == [f"Gene{i}" for i in range(7)]
    assert list(adata.obs["condition"]) == ["Control", "Salmonella", "Hpoly.Day3", "Hpoly.Day10"]
    assert list(adata.obs["cell_type"]) == ["Enterocyte.Progenitor", "Stem", "TA.Early", "Stem"]
    assert list(adata.obs["batch"]) == ["B1", "B1", "B3", "B4"]
    assert adata.obs["condition"].cat.categories[0] == "Control"


@pytest.mark.parametrize("strange", ["B1_AAAC_Control", "B1_AAAC_Toxoplasma_Stem"])
def test_haber17_refuses_columns_of_another_kind(serve, cache, monkeypatch, strange):
    gut(serve, monkeypatch, header="\t".join([strange, *GUT[1:]]))
    with pytest.raises(InputError, match=rf"columns \['{strange}'\]; expected unique ones as 'B1_"):
        datasets.haber17(progress=False)


def test_donors_differ_as_told():
    simulate = datasets.simulate
    one, several = simulate(600, 50, seed=3), simulate(600, 50, n_donors=3, seed=3)
    assert "donor" not in one.obs
    assert list(one.varm) == ["true_share"]
    assert (one.X != several.X).nnz == 0  # donors that do not differ
    adata = simulate(6000, 400, n_labels=3, n_donors=20, donor_sd=0.4, heterogeneity=0.0, seed=4)
    assert adata.obs["donor"].nunique() == 20
    truth = np.log(adata.varm["true_donor_share"])
    control = truth[[f"type_0|control|donor_{d}" for d in range(20)]].to_numpy()
    sd = (control - control.mean(0)).std(1, ddof=1)
    assert np.sqrt(np.mean(sd**2)) == pytest.approx(0.4, rel=0.1)
    end = truth[[f"type_0|stimulated|donor_{d}" for d in range(20)]].to_numpy()
    change = end - control
    spread = (change - np.median(change, 0)).std(1, ddof=1)
    responds = spread > 0.1
    assert 0.05 < responds.mean() < 0.3
    assert np.sqrt(np.mean(spread[responds] ** 2)) == pytest.approx(0.4, rel=0.15)
    both = adata.varm["true_share"]["type_0|control"]
    assert both.sum() == pytest.approx(1.0)
    with pytest.raises(InputError, match="n_donors is 0"):
        simulate(n_donors=0)
    with pytest.raises(InputError, match="donor_sd is -1"):
        simulate(donor_sd=-1)


def test_styles_may_be_numbered():
    numbered = datasets.digits(pd.DataFrame({"angle": [0.0, 10.0]}))
    named = datasets.digits(pd.DataFrame({"angle": [0.0, 10.0]}, index=["0", "1"]))
    np.testing.assert_array_equal(numbered.X, named.X)


def test_styles_that_read_the_same_are_refused():
    with pytest.raises(InputError, match="each style once"):
        datasets.digits(pd.DataFrame({"angle": [0.0, 10.0]}, index=[1, "1"]))
