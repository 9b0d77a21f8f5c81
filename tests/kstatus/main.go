// Reads objects as JSON lines, and prints what becomes of each by kstatus (the library that Flux asks) or, with a file of Lua as
// argument, by that script in the interpreter that Argo CD has.
package main

import (
	"bufio"
	"fmt"
	"os"

	lua "github.com/yuin/gopher-lua"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/cli-utils/pkg/kstatus/status"
)

func main() {
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 4<<20)
	for lines.Scan() {
		object := &unstructured.Unstructured{}
		check(object.UnmarshalJSON(lines.Bytes()))
		if len(os.Args) > 1 {
			fmt.Println(health(os.Args[1], object))
			continue
		}
		result, err := status.Compute(object)
		check(err)
		fmt.Println(result.Status)
	}
}

func health(script string, object *unstructured.Unstructured) string {
	state := lua.NewState()
	defer state.Close()
	state.SetGlobal("obj", valueOf(state, object.Object))
	check(state.DoFile(script))
	return state.Get(-1).(*lua.LTable).RawGetString("status").String()
}

func valueOf(state *lua.LState, value any) lua.LValue {
	switch value := value.(type) {
	case map[string]any:
		table := state.NewTable()
		for key, each := range value {
			table.RawSetString(key, valueOf(state, each))
		}
		return table
	case []any:
		table := state.NewTable()
		for _, each := range value {
			table.Append(valueOf(state, each))
		}
		return table
	case string:
		return lua.LString(value)
	case bool:
		return lua.LBool(value)
	case int64:
		return lua.LNumber(value)
	case float64:
		return lua.LNumber(value)
	}
	return lua.LNil
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}
