# A thin front over tools that also run without it. Everything is set up on first use.

PYTHON ?= python3
VENV ?= .venv
PREFIX ?= /usr/local
STAMP = $(VENV)/.set-up

.PHONY: demo test test-boot test-boot-all bench fuzz bootmedia reproduce lint install clean setup man screens

setup: $(STAMP)

# Debian packages first (as root: installed; otherwise the one apt line is printed), then a virtual
# environment with the Python packages of pyproject.toml.
$(STAMP): pyproject.toml debian-packages.txt
	sh ./setup.sh "$(PYTHON)" "$(VENV)"
	touch $@

demo: setup
	$(VENV)/bin/python -m tests.demo

test: setup lint
	$(VENV)/bin/python -m pytest

# Machines in QEMU that are brought back by the medium; as root. All of them take hours, and write
# docs/boot-matrix.md.
test-boot: setup
	sh ./tests/boot/setup.sh
	$(VENV)/bin/python -m pytest -o timeout=1800 -m ci tests/boot

test-boot-all: setup
	sh ./tests/boot/setup.sh
	$(VENV)/bin/python -m tests.boot.matrix

lint: setup
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy

bench: setup
	$(VENV)/bin/python -m tests.bench

# Damaged volumes for every reader (docs/fuzzing.md). `python -m tests.fuzz --help` for less.
fuzz: setup
	nice -n 19 $(VENV)/bin/python -m tests.fuzz --seconds 3600

# The rescue medium, with its lists beside it.
bootmedia: setup
	mkdir -p dist
	$(VENV)/bin/imager bootmedia build --output dist

# Builds, bases included, that must be the same to the bit, the last by the first one's manifest; minutes.
reproduce: setup
	mkdir -p dist
	$(VENV)/bin/imager bootmedia build --variant ci --refresh --output dist/one.iso
	$(VENV)/bin/imager bootmedia build --variant ci --refresh --output dist/two.iso
	cmp dist/one.iso dist/two.iso
	$(VENV)/bin/imager bootmedia build --variant ci --refresh --manifest dist/one.iso.manifest --output dist/three.iso
	cmp dist/one.iso dist/three.iso

# The manual page is made from the parser itself; a test compares them.
man: setup
	$(VENV)/bin/python -m tests.manual > docs/imager.8

# The screens in docs/rescue.md are taken from the program; a test compares them.
screens: setup
	$(VENV)/bin/python -m tests.rescue_screens

# In an environment of its own: Debian's Python takes no packages from elsewhere.
install: setup
	$(PYTHON) -m venv $(PREFIX)/lib/imager
	$(PREFIX)/lib/imager/bin/python -m pip install --quiet --disable-pip-version-check '.[rescue,unlock]'
	install -d $(PREFIX)/sbin
	ln -sf ../lib/imager/bin/imager $(PREFIX)/sbin/imager
	install -D -m 644 docs/imager.8 $(PREFIX)/share/man/man8/imager.8

clean:
	rm -rf $(VENV) build dist demo *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
