# Every target is one line over ./run, which also works without make.
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all lint bench

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "  %-10s %s\n", $$1, $$2}'

setup: ## make or update .venv
	./run setup

demo: ## a whole federation on this machine
	./run demo

test: ## the tests without the slow ones
	./run test

test-all: ## every test
	./run test-all

lint: ## ruff and mypy
	./run lint

bench: ## the benchmarks, JSON out
	./run bench
