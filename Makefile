# `make help` lists the targets. The scripts in hack/ do the work and can be called on their own.
.DEFAULT_GOAL := help
.PHONY: help build tools demo test check e2e critest critest-podsandbox test-compat test-vm critest-vm clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## the release binary, static: target/release/containerd-shim-rs-v2
	@hack/build.sh

tools: ## pinned containerd, crictl, critest, runc … and the test images, into .tools/
	@hack/tools.sh
	@hack/images.sh

demo: ## a pod of two containers lives and dies on a private containerd
	@hack/demo.sh

test: ## unit, golden plans, root, and end to end
	@hack/test.sh

check: ## format and lint
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings

e2e: ## the end-to-end checks alone
	@hack/e2e.sh

critest: build ## the whole of critest, beside runc: what runc passes has to pass
	@hack/critest.sh rs runc

critest-podsandbox: build ## the same for the shim in pause mode (sandboxer = 'podsandbox')
	@hack/critest.sh rs-podsandbox runc

test-compat: build ## the same smoke on containerd 1.6, 1.7, 2.1, 2.3 and on docker
	@hack/compat.sh

test-vm: build ## cgroup v2, systemd, AppArmor, Linux 6.1 and 6.12: in virtual machines
	@hack/test-vm.sh

critest-vm: build ## the whole of critest beside runc on cgroup v2: cgroupfs driver, then systemd's
	@hack/critest-vm.sh cgroupfs systemd

clean: ## what was built here; the private containerds are stopped first
	hack/containerd.sh stop
	hack/containerd.sh stop .tools/demo
	rm -rf target .tools
