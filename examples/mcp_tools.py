"""Tools for language models: a program that speaks the Model Context Protocol asks `needle mcp` about a cluster.

pip install 'needle-vdb[server,demo,mcp]' mcp && python examples/mcp_tools.py 127.0.0.1:7001
"""

import asyncio
import sys

from mcp import ClientSession, StdioServerParameters, stdio_client
from words import Words, summaries

import needle


async def main(cluster: str) -> None:
    found, words = summaries(), Words()
    async with needle.connect(cluster) as client:
        await client.create_collection("tools", model="wordllama", if_absent=True)
        await client.insert_batch(
            ids=[one.module for one in found],
            vectors=words.embed([one.text for one in found]),
            metadatas=[{"text": one.text, "lines": one.lines} for one in found],
            collection="tools",
        )
    started = StdioServerParameters(command=sys.executable, args=["-m", "needle", "mcp", "--cluster", cluster])
    async with stdio_client(started) as (reading, writing), ClientSession(reading, writing) as session:
        await session.initialize()
        print("tools:", ", ".join(sorted(tool.name for tool in (await session.list_tools()).tools)))
        asked = {"collection": "tools", "text": "parse the arguments of a command", "k": 3, "fields": ["text"]}
        answer = await session.call_tool("search", asked)
        for content in answer.content:
            print(content.text)


asyncio.run(main(sys.argv[1]))
