"""A browser on one page, and what must hold of whatever it shows: nothing breaks, leaks out of the sides, comes from
elsewhere, runs that came as a value, or is too faint to read."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from playwright.async_api import Browser, Page

WIDTHS: Final = {1280: 900, 390: 844}
CONTRAST_MIN: Final = 4.5
"""WCAG AA, for text of any size."""

_FAINT = """
(least) => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const read = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const light = ([r, g, b]) => {
    const part = (n) => (n / 255 <= 0.04045 ? n / 255 / 12.92 : ((n / 255 + 0.055) / 1.055) ** 2.4);
    return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
  };
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = read(getComputedStyle(at).backgroundColor);
      if (colour[3] > 0.99) return colour;
    }
    return [255, 255, 255, 1];
  };
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((one) => one.nodeType === 3 && one.data.trim());
    if (!own || !element.checkVisibility() || element.closest("[aria-hidden]") || element.matches(".none")) continue;
    const style = getComputedStyle(element);
    const colour = element instanceof SVGElement ? style.fill : style.color;
    const [a, b] = [light(read(colour)), light(behind(element))].sort((x, y) => y - x);
    const contrast = (a + 0.05) / (b + 0.05);
    if (contrast < least) found.push(`${element.nodeName}.${element.className}: ${contrast.toFixed(2)}`);
  }
  return [...new Set(found)];
}
"""


class Look:
    """One page. faults: what the browser complained of."""

    def __init__(self, page: Page, base: str, shots: Path, name: str) -> None:
        self.page, self.base, self._shots, self._name = page, base, shots, name
        self.faults: list[str] = []
        self.quiet = True
        """Whether an answer that is an error is a fault."""
        page.on("pageerror", lambda error: self.faults.append(f"error: {error}"))
        page.on("console", self._said)
        page.on("dialog", lambda dialog: self.faults.append(f"dialog: {dialog.message}"))
        page.on("request", self._asked)

    def _said(self, message: Any) -> None:
        refused = message.text.startswith("Failed to load resource")
        if message.type in ("error", "warning") and (self.quiet or not refused):
            self.faults.append(f"console: {message.text}")

    def _asked(self, request: Any) -> None:
        if not request.url.startswith(self.base):
            self.faults.append(f"asked for {request.url}")

    async def go(self, view: str, until: str) -> None:
        """Show a view afresh. until: a selector of what must be seen."""
        await self.page.goto("about:blank")
        await self.page.goto(f"{self.base}/ui{view}")
        await self.page.wait_for_selector(until, timeout=30_000)

    async def sound(self, what: str) -> None:
        """Raises AssertionError unless all that the module says holds of what is shown now."""
        page = self.page
        over = await page.evaluate("document.documentElement.scrollWidth - innerWidth")
        assert over <= 0, f"{what}: {over} pixels stick out"
        assert not await page.evaluate("'harmed' in window"), f"{what}: a value was run"
        assert not await page.evaluate("'harmed' in {}"), f"{what}: a value changed all objects"
        strange = "main script, main iframe, main img, main svg[onload], [onerror], [style*=url]"
        assert await page.locator(strange).count() == 0, f"{what}: a value became markup"
        faint = await page.evaluate(_FAINT, CONTRAST_MIN)
        assert not faint, f"{what}: too faint: {json.dumps(faint)}"
        assert not self.faults, f"{what}: {self.faults}"

    async def shot(self, what: str, *, whole: bool = True) -> None:
        """A picture, after `sound`."""
        await self.sound(what)
        await self.page.screenshot(path=self._shots / f"{what}-{self._name}.png", full_page=whole)


@asynccontextmanager
async def looking(browser: Browser, base: str, shots: Path, width: int, scheme: str) -> AsyncIterator[Look]:
    """A tab of its own, with a session of its own."""
    size: Any = {"width": width, "height": WIDTHS[width]}
    chosen: Any = scheme
    context = await browser.new_context(viewport=size, color_scheme=chosen, ignore_https_errors=True)
    try:
        yield Look(await context.new_page(), base, shots, f"{width}-{scheme}")
    finally:
        await context.close()
