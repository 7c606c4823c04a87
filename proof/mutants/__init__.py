"""Mutation proof: bugs planted one at a time, to show that the simulation and the tests would see them."""
