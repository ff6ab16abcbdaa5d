// Prints what upstream's CEL environment declares, or, with a file of expressions as argument, what it says of each: below it,
// each line after a tab, the faults or the type of the value.
package main

import (
	"fmt"
	"log"
	"os"
	"sort"
	"strings"

	"github.com/google/cel-go/cel"
	"github.com/google/cel-go/checker"
	"k8s.io/apiserver/pkg/cel/environment"
)

func main() {
	log.SetFlags(0)
	env := environment.MustBaseEnvSet(environment.DefaultCompatibilityVersion()).NewExpressionsEnv()
	if len(os.Args) < 2 {
		signatures(env)
		return
	}
	if err := answers(env, os.Args[1]); err != nil {
		log.Fatal(err)
	}
}

// signatures prints a line for each way to call a function; those of methods begin with a point.
func signatures(env *cel.Env) {
	var lines []string
	for name, function := range env.Functions() {
		for _, overload := range function.OverloadDecls() {
			var parameters []string
			for _, parameter := range overload.ArgTypes() {
				parameters = append(parameters, checker.FormatCELType(parameter))
			}
			point := ""
			if overload.IsMemberFunction() {
				point = "."
			}
			result := checker.FormatCELType(overload.ResultType())
			lines = append(lines, fmt.Sprintf("%s%s(%s) -> %s", point, name, strings.Join(parameters, ", "), result))
		}
	}
	sort.Strings(lines)
	for _, line := range lines {
		fmt.Println(line)
	}
}

func answers(env *cel.Env, path string) error {
	variables := map[string]*cel.Type{
		"b": cel.BoolType, "by": cel.BytesType, "d": cel.DynType, "du": cel.DurationType, "i": cel.IntType,
		"ld": cel.ListType(cel.DynType), "li": cel.ListType(cel.IntType), "m": cel.MapType(cel.StringType, cel.IntType),
		"s": cel.StringType, "t": cel.TimestampType, "u": cel.UintType, "x": cel.DoubleType,
	}
	var options []cel.EnvOption
	for name, of := range variables {
		options = append(options, cel.Variable(name, of))
	}
	env, err := env.Extend(options...)
	if err != nil {
		return err
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	for _, line := range strings.Split(strings.TrimRight(string(text), "\n"), "\n") {
		if strings.HasPrefix(line, "\t") {
			continue
		}
		ast, issues := env.Compile(line)
		answer := ""
		if issues.Err() != nil {
			answer = issues.String()
		} else {
			answer = ": " + ast.OutputType().String()
		}
		fmt.Printf("%s\n\t%s\n", line, strings.ReplaceAll(answer, "\n", "\n\t"))
	}
	return nil
}
