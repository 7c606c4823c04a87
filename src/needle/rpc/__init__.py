"""The wire: frames, their codec, and the asyncio client, server and peer transport that carry them.

Bodies are opaque bytes here; what they mean is the business of the layers above.
"""
