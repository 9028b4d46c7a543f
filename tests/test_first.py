"""What is imported when, and what is said of it."""

import gc
import subprocess
import sys
import textwrap

import trvae_sc


def test_the_import_of_what_takes_long_is_said_once(monkeypatch, capsys):
    with trvae_sc._importing("TRVAE"):
        pass
    assert capsys.readouterr().err == ""  # it is there
    monkeypatch.delitem(sys.modules, "scvi")
    with trvae_sc._importing("metrics"):
        pass
    assert capsys.readouterr().err == ""  # it is not needed
    with trvae_sc._importing("TRVAE"):
        pass
    said = capsys.readouterr().err
    assert said == "Importing torch and scvi-tools, which takes some seconds ...\n"


def test_garbage_is_collected_again_after_an_import():
    with trvae_sc._importing("TRVAE"):
        assert not gc.isenabled()
    assert gc.isenabled()


def test_an_unknown_method_is_found_before_torch_is_imported():
    code = """
        import sys
        import trvae_sc
        try:
            trvae_sc.evaluation.benchmark(None, ["trvea"], [], condition_key="c", labels_key="l")
        except trvae_sc.InputError as error:
            print(error, "torch" in sys.modules)
    """
    code = textwrap.dedent(code)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Unknown methods ['trvea']; there are ['no_change', ")
    assert done.stdout.endswith("False\n")
