// Posts one event in each form that the CloudEvents SDK of another language knows: sender URL TOKEN.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"

	cloudevents "github.com/cloudevents/sdk-go/v2"
	"github.com/cloudevents/sdk-go/v2/binding"
	cehttp "github.com/cloudevents/sdk-go/v2/protocol/http"
)

func event(id string, order string) cloudevents.Event {
	made := cloudevents.NewEvent()
	made.SetID(id)
	made.SetSource("/go/café")
	made.SetType("shop.paid")
	made.SetSubject("order " + order)
	made.SetExtension("tenant", "a b")
	if err := made.SetData(cloudevents.ApplicationJSON, map[string]string{"order": order}); err != nil {
		panic(err)
	}
	return made
}

func main() {
	url, token := os.Args[1], os.Args[2]
	protocol, err := cloudevents.NewHTTP(cloudevents.WithTarget(url), cehttp.WithHeader("Authorization", "Bearer "+token))
	if err != nil {
		panic(err)
	}
	client, err := cloudevents.NewClient(protocol)
	if err != nil {
		panic(err)
	}
	results := map[string]int{}
	send := func(name string, ctx context.Context, id string) {
		var answer *cehttp.Result
		if cloudevents.ResultAs(client.Send(ctx, event(id, name)), &answer) {
			results[name] = answer.StatusCode
		}
	}
	send("binary", binding.WithForceBinary(context.Background()), "b")
	send("structured", binding.WithForceStructured(context.Background()), "s")

	request, err := cehttp.NewHTTPRequestFromEvents(context.Background(), url, []cloudevents.Event{event("1", "first"), event("2", "second")})
	if err != nil {
		panic(err)
	}
	request.Header.Set("Authorization", "Bearer "+token)
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		panic(err)
	}
	defer answer.Body.Close()
	results["batch"] = answer.StatusCode
	text, _ := json.Marshal(results)
	fmt.Println(string(text))
}
