#!/bin/sh
# A CNI 1.1 plugin for tests: a veth pair into bridge cni0 of the node, addresses from a counter.
# $FAKE_CNI_DIR/calls gets one line a call; $FAKE_CNI_DIR/fail makes ADD and DEL fail.
set -e
conf=$(cat)
id=$(printf %.10s "$CNI_CONTAINERID")
echo "$CNI_COMMAND $id $CNI_ARGS $(readlink /proc/self/ns/net)" >> "$FAKE_CNI_DIR/calls"
refuse() { echo '{"cniVersion":"1.1.0","code":11,"msg":"try again later","details":"told to fail"}'; exit 1; }
case "$CNI_COMMAND" in
ADD)
  [ -e "$FAKE_CNI_DIR/fail" ] && refuse
  n=$( (flock 9; n=$(($(cat "$FAKE_CNI_DIR/counter" 2>/dev/null || echo 10) + 1)); echo $n > "$FAKE_CNI_DIR/counter"; echo $n) 9> "$FAKE_CNI_DIR/lock")
  ip link show cni0 > /dev/null 2>&1 || ip link add cni0 type bridge 2> /dev/null || true
  ip addr replace 10.99.0.1/16 dev cni0
  ip addr replace fd99::1/64 dev cni0 nodad
  ip link set cni0 up
  ns=$(basename "$CNI_NETNS")
  ip link add "v$id" type veth peer name "$CNI_IFNAME" netns "$ns"
  ip link set "v$id" master cni0 up
  ip -n "$ns" addr add "10.99.0.$n/16" dev "$CNI_IFNAME"
  ip -n "$ns" addr add "fd99::$n/64" dev "$CNI_IFNAME" nodad
  ip -n "$ns" link set "$CNI_IFNAME" up
  echo "{\"cniVersion\":\"1.1.0\",\"ips\":[{\"address\":\"fd99::$n/64\"},{\"address\":\"10.99.0.$n/16\"}]}" ;;
DEL)
  [ -e "$FAKE_CNI_DIR/fail" ] && refuse
  ip link del "v$id" 2> /dev/null || true ;;
GC) echo "$conf" >> "$FAKE_CNI_DIR/gc" ;;
esac
