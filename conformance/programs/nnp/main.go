// Command nnp tells as whom it runs. Its file is setuid: with no_new_privs that has no effect.
package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Println("Effective uid:", os.Geteuid())
}
