"""`needle mcp`: a server of the Model Context Protocol, over standard input and output."""

from __future__ import annotations

import functools
import importlib
from typing import Annotated, Any

import typer

import needle
from needle.base.errors import ConfigError, NeedleError
from needle.cli.common import DEFAULT_CLUSTER, Cluster, run
from needle.cli.mcp_tools import Tool, Tools

INSTRUCTIONS = (
    "A vector database. list_collections says what there is; search finds documents near to a text, a document or a "
    "vector, with filters on metadata."
)


def mcp(
    write: Annotated[bool, typer.Option("--write", help="Also offer tools that insert, patch and delete.")] = False,
    cluster: Cluster = DEFAULT_CLUSTER,
) -> None:
    """Serve tools for language models (MCP) over standard input and output: search, get, count, list; with --write also
    insert, patch, delete. Needs 'needle-vdb[mcp]'."""
    server = _server()

    async def work(client: needle.Client) -> None:
        offer(server, Tools(client), write)
        await server.run_async("stdio", show_banner=False)

    run(cluster, work)


def offer(server: Any, tools: Tools, write: bool) -> None:
    """Give a FastMCP server its tools."""
    for tool in tools.reading():
        server.tool(_told(tool), annotations={"readOnlyHint": True})
    for tool in tools.writing() if write else ():
        server.tool(_told(tool), annotations={"readOnlyHint": False})


def _server() -> Any:
    try:
        fastmcp = importlib.import_module("fastmcp")
    except ImportError as error:
        raise ConfigError(f"`needle mcp` needs fastmcp: pip install 'needle-vdb[mcp]'; {error}", field="mcp") from None
    return fastmcp.FastMCP("needle", instructions=INSTRUCTIONS, version=needle.__version__)


def _told(tool: Tool) -> Tool:
    """With errors in words: a model reads them."""
    refused = importlib.import_module("fastmcp.exceptions").ToolError

    @functools.wraps(tool)
    async def asked(*args: Any, **kwargs: Any) -> Any:
        try:
            return await tool(*args, **kwargs)
        except NeedleError as error:
            again = "; it may be repeated" if error.retryable else ""
            raise refused(f"[{error.code}] {error.message}{again}") from error

    return asked
