package kernel

// The generated Go and the objects are committed, so that building needs no clang; `make generate` makes them again
// and `make drift` fails when that changes them. Only little-endian machines are supported.
//go:generate go tool -modfile=../../../tools/go.mod bpf2go -cc clang -strip llvm-strip -target amd64,arm64 -go-package kernel -type flow_report -type exec_report -type fork_report -type exit_report -type call_key -type call_value -type kind -type direction -type peer -type tally bpf ../../../bpf/picosnitch.bpf.c -- -O2 -mcpu=v3 -Wall -Werror -Wno-unused-function -I../../../bpf -fdebug-prefix-map=/=
