# The Debian packages that a task needs and this machine lacks. Sourced, not run.
# shellcheck shell=bash

# install_missing PACKAGE...: installs those that are not there, and says nothing if none is missing.
install_missing() {
  local missing=()
  for package in "$@"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing+=("$package")
  done
  [ ${#missing[@]} -eq 0 ] && return 0
  echo "installing ${missing[*]}"
  local sudo=()
  [ "$(id -u)" -eq 0 ] || sudo=(sudo)
  "${sudo[@]}" apt-get update -qq
  DEBIAN_FRONTEND=noninteractive "${sudo[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# What building takes: a C compiler for the crypto library, protoc for the wire contracts, netlink headers.
BUILD_PACKAGES=(build-essential cmake pkg-config protobuf-compiler libprotobuf-dev libnftnl-dev libmnl-dev)
# What a node takes.
NODE_PACKAGES=(containerd runc containernetworking-plugins nftables iproute2)
# What tests compare with and look with.
TEST_PACKAGES=(etcd-client etcd-server conntrack curl)
