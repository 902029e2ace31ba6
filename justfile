# Shortcuts over .ci/run, which runs without just and decides what each step does. `just` lists them.

_list:
    @just --list --unsorted

# Format the code
fmt:
    cargo fmt --all

# Library tests only, the fastest check
unit *FILTER:
    cargo test --locked --lib {{FILTER}}

# Integration tests whose names contain FILTER
it FILTER:
    cargo test --locked --test it {{FILTER}}

# The gate: every step below, up to 90 minutes
gate:
    .ci/run

# Formatting is right
formatting:
    .ci/run formatting

# Lints, warnings denied, in every target
clippy:
    .ci/run clippy

# Rustdoc builds without warnings
rustdoc:
    .ci/run documentation

# All tests, with the programs that they need
test:
    .ci/run tests

# Delays of notifications and benchmarks, in small
bench:
    .ci/run delays benchmarks

# The control interface conforms to its OpenAPI document
openapi:
    .ci/run 'the control interface'

# The page in a real Chromium
page:
    .ci/run 'the page'

# Metrics, alerts and dashboard with a real Prometheus
monitoring:
    .ci/run metrics

# Real servers of run APIs, whose runs are watched
providers:
    .ci/run 'real servers'

# The real process is killed, stopped, and deprived of disk and network
torture:
    .ci/run torture

# The store on a PostgreSQL of its own; several daemons on one, killed, frozen and cut off; failovers; the lease as a model
cluster:
    .ci/run 'the store' 'the lease' 'several daemons' failovers

# Simulated days of fixed seeds
simulation:
    .ci/run simulated

# Deliberate bugs that the simulation must find
mutants:
    .ci/run deliberate

# Changes of a source file that no unit test notices, by cargo-mutants; by hand, about a minute for each change
source-mutants FILE:
    cargo mutants --file {{FILE}}

# Fuzzing: the corpus, and new inputs of a fixed seed
fuzz:
    .ci/run fuzzing

# The Debian package and the RPM on a real systemd; needs root or sudo
systemd:
    .ci/run 'the package'

# The archive of a release, the GitHub Action and the workflows
release:
    .ci/run 'the archive'

# The container image, as an engine runs it; needs root or sudo
container:
    .ci/run 'the container image'

# Three hosts with links that fail, and the programs of examples/; needs root or sudo
network:
    .ci/run 'three hosts'

# Licenses, bans, sources and advisories of the dependencies, and those that nothing uses
deny:
    .ci/run tools licenses advisories dependencies
