"""Measurements: they write JSON; plots are a separate step.

Each module here that can be run with ``python -m`` measures one thing, runs several such, or shows them; in the folders
is what they are made of:

- ``load_generator``: puts a server under load, for ``load``, ``tail_latency``, ``sweep`` and ``compare``;
- ``serving``: the ways to a server, and what they cost, for ``service`` and ``memory``;
- ``costs``: how costs grow with an event, for ``scaling``, and what the machine allows, for ``floors``;
- ``finders``: the peer, and every finder in its turn, for ``physics``, ``rules`` and ``compare``;
- ``pages``: results as HTML, for ``report``, ``compare`` and ``physics``.

``candidates``, ``engine_rows``, ``event_sets``, ``machine``, ``quantiles`` and ``result`` are shared.
"""
