"""A client in TypeScript, generated from the OpenAPI document that a node serves."""
