"""report.html in a real browser: it renders, its table sorts, and nothing runs or loads that should not."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from hf_finetune.reporting.report import build_report
from tests.finished_run import draw_image, write_predicted_run

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs Chromium")

CLASSES = [f"breed {index:02d}" for index in range(12)]
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--enable-logging=stderr",
    "--virtual-time-budget=2000",
)


def browse(address: str, profile: Path, *flags: str) -> subprocess.CompletedProcess:
    # no route out: a request that the page makes fails and is logged
    command = [BROWSER, *FLAGS, f"--user-data-dir={profile}", "--proxy-server=127.0.0.1:9", *flags, address]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


def console(result: subprocess.CompletedProcess) -> list[str]:
    return [line for line in result.stderr.splitlines() if "CONSOLE" in line]


def class_order(dom: str) -> list[str]:
    table = dom[dom.index("data-sortable") :]
    return [re.sub("<[^>]+>", "", name) for name in re.findall(r'<tr><th scope="row">(.*?)</th>', table[: table.index("</table>")])]


def header(dom: str, key: str) -> str:
    return re.search(rf'<th[^>]*data-key="{key}"[^>]*>', dom).group()


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    return build_report(write_predicted_run(tmp_path_factory.mktemp("page") / "lora_demo", CLASSES), draw_image)


def test_console_errors_would_be_seen(tmp_path):
    broken = tmp_path / "broken.html"
    broken.write_text("<script>missing.call()</script><img src='http://127.0.0.1:9/x.png'>")
    assert "missing is not defined" in "".join(console(browse(broken.as_uri(), tmp_path / "profile", "--dump-dom")))


def test_page_opens_without_errors_and_headers_become_buttons(page, tmp_path):
    result = browse(page.as_uri(), tmp_path / "profile", "--dump-dom")
    assert console(result) == []
    assert len(re.findall(r'<th[^>]*data-key[^>]*><button type="button">', result.stdout)) == 5
    assert 'aria-sort="ascending"' in header(result.stdout, "recall")


@pytest.mark.parametrize("address", ["#sort=class", "#sort=-class", "#sort=-recall"])
def test_address_chooses_the_order(page, tmp_path, address):
    dom = browse(page.as_uri() + address, tmp_path / "profile", "--dump-dom").stdout
    key, descending = address.removeprefix("#sort=").lstrip("-"), "-" in address
    assert f'aria-sort="{"descending" if descending else "ascending"}"' in header(dom, key)
    assert len(re.findall(r"<th[^>]*aria-sort", dom)) == 1
    original = class_order(page.read_text())
    expected = sorted(CLASSES, reverse=descending) if key == "class" else None
    assert class_order(dom) == expected if expected else class_order(dom)[0] == original[-1]


def test_a_click_sorts_and_a_second_one_turns_it(page, tmp_path):
    text = page.read_text()
    clicks = "document.querySelector('th[data-key=f1] button').click();document.querySelector('th[data-key=f1] button').click();"
    clicked = tmp_path / "clicked.html"
    clicked.write_text(text.replace("</body>", f"<script>{clicks}</script></body>"))
    dom = browse(clicked.as_uri(), tmp_path / "profile", "--dump-dom").stdout
    table = dom[dom.index("data-sortable") :]
    figures = [
        float(value) for value in re.findall(r'<tr><th.*?</th><td.*?</td><td.*?</td><td class="figure" data-value="([\d.]+)"', table)
    ]
    assert len(figures) == 12
    assert figures == sorted(figures, reverse=True)
    assert 'aria-sort="descending"' in header(dom, "f1")


def test_hostile_names_run_nothing(make_run, tmp_path):
    hostile = [
        "<img src=x onerror=\"document.title='owned'\">",
        "</script><script>document.title='owned'</script>",
        '"><b onload=1>',
        "plain",
    ]
    result = browse(build_report(make_run(hostile), draw_image).as_uri(), tmp_path / "profile", "--dump-dom")
    assert "<title>lora_demo: " in result.stdout
    assert console(result) == []


@pytest.mark.parametrize(("look", "dark"), [("light", False), ("dark", True)])
def test_page_renders_in_light_and_dark(page, tmp_path, look, dark):
    shot = tmp_path / f"{look}.png"
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    browse(page.as_uri(), tmp_path / "profile", f"--screenshot={shot}", "--window-size=1280,2000", scheme)
    image = Image.open(shot).convert("L")
    assert image.size == (1280, 2000)
    assert (image.getpixel((5, 5)) < 64) == dark
    # a page that failed to render is all one colour
    assert len(image.getcolors(256)) > 100


def test_nothing_is_wider_than_a_phone(page, tmp_path):
    frame = tmp_path / "frame.html"
    frame.write_text(f"<iframe id=f src='{page.as_uri()}' style='width:400px;height:900px;border:0'></iframe>")
    text = page.read_text().replace("</body>", "<script>document.title = `width ${document.documentElement.scrollWidth}`</script></body>")
    narrow = tmp_path / "narrow.html"
    narrow.write_text(text)
    frame.write_text(frame.read_text().replace(page.as_uri(), narrow.as_uri()))
    measure = "<script>onload = () => document.title = document.getElementById('f').contentDocument.title</script>"
    frame.write_text(frame.read_text() + measure)
    dom = browse(frame.as_uri(), tmp_path / "profile", "--dump-dom", "--allow-file-access-from-files").stdout
    assert "<title>width 400</title>" in dom
