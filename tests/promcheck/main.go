// Promcheck does what `promtool check rules`, `promtool check metrics` and `promtool test rules` do, with the
// same packages of Prometheus, and without all the clouds that promtool itself is linked with.
//
//	promcheck rules FILE
//	promcheck metrics <FILE
//	promcheck test FILE
package main

import (
	"fmt"
	"os"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"github.com/prometheus/prometheus/model/rulefmt"
)

func main() {
	found := 0
	switch {
	case len(os.Args) == 3 && os.Args[1] == "rules":
		_, problems := rulefmt.ParseFile(os.Args[2], false)
		for _, problem := range problems {
			fmt.Println(problem)
			found++
		}
	case len(os.Args) == 3 && os.Args[1] == "test":
		for _, problem := range testAlerts(os.Args[2]) {
			fmt.Println(problem)
			found++
		}
	case len(os.Args) == 2 && os.Args[1] == "metrics":
		problems, err := promlint.New(os.Stdin).Lint()
		if err != nil {
			fmt.Println(err)
			found++
		}
		for _, problem := range problems {
			fmt.Println(problem.Metric, problem.Text)
			found++
		}
	default:
		fmt.Fprintln(os.Stderr, "usage: promcheck rules FILE | promcheck metrics <FILE | promcheck test FILE")
		os.Exit(2)
	}
	if found > 0 {
		os.Exit(1)
	}
}
