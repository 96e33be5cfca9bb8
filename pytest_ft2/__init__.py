"""A pytest plugin: gate a language model's tests on its rate of silent data corruption."""
