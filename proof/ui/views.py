"""What each view must show, and what can be done with it."""

from __future__ import annotations

from proof.ui.looking import Look
from proof.ui.site import BIG, BOOKS, FAR, HOSTILE, IDS, MANY, NOTES, TEXTS, VECTORS, Closed

BAD_VECTOR = "1, 2, x"


async def cluster(look: Look) -> None:
    """A healthy one of three nodes."""
    await look.go("#/", ".verdict.is-good")
    page = look.page
    assert "Healthy" in await page.inner_text(".verdict")
    assert await page.locator("table.nodes tbody tr").count() == 3
    assert await page.locator("table.shards tbody tr").count() == 2
    catalog = await page.locator("tr[data-key=shard-catalog]").inner_text()
    assert "catalog" in catalog and "healthy" in catalog and "Leader" in catalog.title(), catalog
    assert await page.locator("table.shards td.cell .mark").all_inner_texts() != []
    assert str(MANY + len(IDS) + len(TEXTS) + len(VECTORS)) in await page.inner_text(".figures")
    plot = page.locator(".plot").last
    await plot.locator(".empty").wait_for(state="detached")
    await plot.scroll_into_view_if_needed()
    box = await plot.bounding_box()
    assert box is not None
    for inside in range(1, 60):  # the newest moments are at the right end
        await page.mouse.move(box["x"] + box["width"] - inside, box["y"] + 20)
        if await plot.locator(".read").is_visible():
            break
    assert "documents" in await plot.locator(".read").inner_text()
    await page.mouse.move(5, 5)
    await look.shot("cluster")


async def collections(look: Look) -> None:
    """The list, and the way into one."""
    await look.go("#/collections", "table tbody tr")
    page = look.page
    names = await page.locator("tbody th").all_inner_texts()
    assert HOSTILE in names and BOOKS in names, names
    assert f"alias {HOSTILE}" in await page.inner_text("table")
    await look.shot("collections")
    await page.get_by_role("link", name=HOSTILE).click()
    await page.wait_for_selector(".finder")
    assert await page.inner_text("h1") == HOSTILE
    await look.sound("a collection with a hostile name")


async def documents(look: Look) -> None:
    """Page by page, and one with a hostile id."""
    await look.go(f"#/collections/{BOOKS}", "table.documents tbody tr")
    page = look.page
    await look.shot("collection", whole=False)
    shown = await page.locator("table.documents tbody th").all_inner_texts()
    await page.get_by_role("button", name="Next page").click()
    await page.wait_for_selector("text=51 to 100")
    assert not set(shown) & set(await page.locator("table.documents tbody th").all_inner_texts())
    await page.get_by_role("button", name="Page before").click()
    await page.wait_for_selector("text=1 to 50")
    assert shown == await page.locator("table.documents tbody th").all_inner_texts()
    links = [await link.get_attribute("href") for link in await page.locator("table.documents th a").all()]
    for link in links[: len(IDS)]:
        await look.go(str(link), "article.document")
        text = await page.inner_text("article.document pre")
        assert str(BIG) in text and r"\\u000a is no new line" in text, text
        await look.sound(f"the document at {link}")
    await look.shot("document", whole=False)


async def search(look: Look) -> None:
    """By a document and by a vector, with a filter, explained; and what is refused."""
    await look.go(f"#/collections/{BOOKS}", "table.documents tbody tr")
    page = look.page
    await page.select_option("[name=way]", "like")
    await page.fill("[name=id]", "book-0007")
    await page.fill("[name=filter]", '{"year": {"$lt": 1950}}')
    await page.check("[name=explain]")
    await page.get_by_role("button", name="Show").click()
    await page.wait_for_selector("text=10 hits")
    assert "filter" in await page.inner_text("details.fold[open]")
    await look.shot("search", whole=False)
    await page.fill("[name=filter]", '{"year": {"$nothing": 1}}')
    await page.select_option("[name=way]", "vector")
    look.quiet = False
    for vector, told in ((BAD_VECTOR, "x is no number"), ("1 2", "2 numbers"), ("[1, 2, 3, 4]", "$nothing")):
        await page.fill("[name=vector]", vector)
        await page.get_by_role("button", name="Show").click()
        await page.wait_for_selector(f".answer .problem:has-text('{told}')")
    await page.fill("[name=filter]", "")
    await page.keyboard.press("Tab")
    await page.get_by_role("button", name="Show").click()
    await page.wait_for_selector("text=10 hits")
    look.quiet = True
    await look.sound("a search by vector")
    assert await page.locator("[name=way] option[value=text]").count() == 0, "no model, and yet a text is asked for"
    await look.go(f"#/collections/{NOTES}", "table.documents tbody tr")
    await page.select_option("[name=way]", "text")
    await page.fill("[name=text]", "insects at work")
    await page.get_by_role("button", name="Show").click()
    await page.wait_for_selector("text=3 hits")
    assert (await page.locator("table.documents tbody th").all_inner_texts())[0] == "ants"
    await look.shot("text", whole=False)
    await look.sound("a search by text")


async def far(look: Look) -> None:
    """Numbers beyond those that JavaScript holds to the last digit."""
    await look.go(f"#/collections/{FAR}/documents/a", "article.document")
    page = look.page
    assert "1.000000e+17" in await page.inner_text("article.document dl")
    await page.click("article.document summary")
    vector = await page.inner_text("pre.vector")
    assert "object" not in vector and float(vector.strip("[]").split(",")[0]) > 9.99e16, vector
    await page.select_option("[name=way]", "like")
    await page.get_by_role("button", name="Show").click()
    await page.wait_for_selector("text=1 hit")
    assert "2.000000e+17" in await page.inner_text("table.documents tbody")
    await look.sound("numbers beyond those that JavaScript holds")


async def keyboard(look: Look) -> None:
    """All is reached by keys, and is seen to be; what is chosen stays chosen when the page is made again."""
    await look.go("#/", ".verdict")
    page = look.page
    reached = []
    for _ in range(6):
        await page.keyboard.press("Tab")
        reached.append(await page.evaluate("document.activeElement.textContent.trim().slice(0, 12)"))
        outline = await page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none", f"{reached[-1]} is chosen, and nobody sees it"
    assert reached[:5] == ["Needle", "Cluster", "Collections", "API", "Key"], reached
    await page.evaluate("document.querySelector('.scroll').focus()")
    async with page.expect_response("**/v1/status"), page.expect_response("**/v1/history*"):
        pass
    assert await page.evaluate("document.activeElement.className") == "scroll"
    await page.focus("#key")
    await page.keyboard.press("Enter")
    await page.wait_for_selector("dialog[open]")
    await look.shot("key", whole=False)
    await page.keyboard.press("Escape")
    await page.wait_for_selector("dialog[open]", state="hidden")


async def a_node_that_is_gone(look: Look, node: str) -> None:
    """Is told of, with what to do."""
    page = look.page
    await look.go("#/", ".verdict.is-bad")
    await page.wait_for_selector(f".alerts-list li:has-text('{node}')")
    await look.shot("alert")
    await page.get_by_role("link", name="Runbook: NeedleNodeUnreachable").click()
    await page.wait_for_selector("article.runbook h1:has-text('NeedleNodeUnreachable')")
    await look.shot("runbook", whole=False)


async def silence(look: Look) -> None:
    """The node behind the page does not answer: what was seen stays, and is said to be old."""
    page = look.page
    look.quiet = False
    await page.wait_for_selector("#pulse.is-bad:has-text('not heard since')", timeout=30_000)
    assert await page.locator("table.nodes tbody tr").count() == 3
    assert await page.locator("main.stale").count() == 1, "what is old looks old"
    await look.shot("silence", whole=False)


async def keys(look: Look, site: Closed) -> None:
    """None, a wrong one, one for some collections, one for all; over TLS."""
    page = look.page
    look.quiet = False

    async def give(key: str) -> None:
        await page.fill("#ask-key", key)
        await page.keyboard.press("Enter")

    await look.go("#/", "dialog[open] :text('asks for an API key')")
    await give("ndl_wrong")
    await page.wait_for_selector("dialog[open] :text('is not, or no longer, valid')")
    await give("no k\u00e9y")
    await page.wait_for_selector("dialog[open] :text('no letters beyond ASCII')")
    await give(site.of_books)
    await page.wait_for_selector(".problem:has-text('This key may not see that')")
    await look.shot("refused", whole=False)
    await page.get_by_role("link", name="Collections").first.click()
    await page.wait_for_selector("tbody th")
    assert await page.locator("tbody th").all_inner_texts() == [BOOKS]
    await page.click("#key")
    await give(site.reader)
    await page.wait_for_selector(f"tbody th >> text={HOSTILE}")
    await page.get_by_role("link", name="Cluster").click()
    await page.wait_for_selector(".verdict")
    await look.sound("a cluster with keys")
    kept = await page.evaluate("[JSON.stringify(sessionStorage), JSON.stringify(localStorage), document.cookie]")
    assert site.reader in kept[0] and kept[1:] == ["{}", ""], kept
    assert site.reader not in await page.content()
    await page.click("#key")
    await page.click("#ask-forget")
    await page.wait_for_selector("dialog[open] :text('asks for an API key')")
    assert await page.evaluate("sessionStorage.length") == 0
