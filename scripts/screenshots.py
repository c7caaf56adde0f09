"""Take the pictures of the status page for the documentation, with headless Chromium.

    python scripts/screenshots.py URL NAME [--out DIR]     one page, for desktop and phone, light and dark

Needs playwright (pip) and Chromium (Debian's package chromium).
"""

from __future__ import annotations

import argparse
import io
import shutil
from pathlib import Path
from typing import Any, Final

from PIL import Image
from playwright.sync_api import sync_playwright

STATIC: Final = Path(__file__).resolve().parent.parent / "docs" / "_static"
# Width and height of the window, scale, and whether it is a phone.
DEVICES: Final[dict[str, dict[str, Any]]] = {
    "desktop": {"viewport": {"width": 1280, "height": 900}, "device_scale_factor": 1},
    "phone": {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "is_mobile": True},
}
COLORS: Final = 128


def take_pictures(url: str, name: str, out: Path, *, seconds: float, full: bool, dark: bool) -> list[Path]:
    """Take one picture for each device; return their paths and print what the browser complained about."""
    made = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for device, options in DEVICES.items():
            context = browser.new_context(**options, color_scheme="dark" if dark else "light")
            page = context.new_page()
            page.on("console", lambda message: print(f"{name}: {message.type}: {message.text}"))
            page.on("pageerror", lambda error: print(f"{name}: {error}"))
            page.goto(url)
            page.wait_for_timeout(seconds * 1000)
            wide = page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth")
            if wide:
                print(f"{name}: the page is wider than the {device}")
            made.append(save_picture(page.screenshot(full_page=full), out / f"{name}-{device}.png"))
            context.close()
        browser.close()
    return made


def save_picture(data: bytes, path: Path) -> Path:
    """Save a picture with few colours, which makes it a quarter as large."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    image.quantize(COLORS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size // 1024} KiB")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("name")
    parser.add_argument("--out", type=Path, default=STATIC)
    parser.add_argument("--seconds", type=float, default=4.0, help="time for the plots")
    parser.add_argument("--full", action="store_true", help="the whole page, not only the first screen")
    parser.add_argument("--dark", action="store_true")
    arguments = parser.parse_args()
    take_pictures(
        arguments.url,
        arguments.name,
        arguments.out,
        seconds=arguments.seconds,
        full=arguments.full,
        dark=arguments.dark,
    )


if __name__ == "__main__":
    main()
