// Command picosnitch shows which program sent or received which bytes, to whom. See README.md.
package main

import (
	"os"

	"github.com/picosnitch/picosnitch/internal/cli"
)

func main() {
	os.Exit(cli.Run(os.Args[1:], cli.Env{Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Getenv: os.Getenv}))
}
