package place

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/picosnitch/picosnitch/internal/event"
)

func put(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestNames(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	put(t, root+"/var/lib/docker/containers/"+id+"/config.v2.json", `{"StreamConfig":{},"State":{"Running":true},"ID":"`+id+`","Config":{"Name":"wrong","Env":["Name=wrong"]},"Name":"/web","Driver":"overlay2"}`)
	put(t, root+"/var/snap/docker/common/var-lib-docker/containers/"+id2+"/config.v2.json", `{"Name":"/snapped"}`)
	put(t, root+"/var/lib/containers/storage/overlay-containers/containers.json", `[{"id":"`+id2+`","names":["other"]},{"id":"`+id+`","names":["pod-web","x"],"metadata":"{\"name\":\"no\"}"}]`)
	put(t, root+"/var/log/containers/web-7d4_shop_nginx-proxy-"+id+".log", "")
	put(t, root+"/var/log/containers/x-"+id2+".log", "")
	put(t, root+"/var/lib/nerdctl/1935db59/names/default/blue", id2)
	for _, c := range []struct {
		runtime, id, owner, want string
	}{
		{"docker", id, "", "web"},
		{"", id, "", "web"},
		{"docker", id2, "", "snapped"},
		{"docker", id, "1000", ""}, // a user's claim: the id may be another's
		{"docker", "../../../../etc/passwd", "", ""},
		{"podman", id, "", "pod-web"},
		{"podman", id2, "", "other"},
		{"podman", id2[1:] + "0", "", ""},
		{"containerd", id, "", "shop/web-7d4/nginx-proxy"},
		{"cri-o", id, "", "shop/web-7d4/nginx-proxy"},
		{"kubernetes", id, "", "shop/web-7d4/nginx-proxy"},
		{"containerd", id2, "", "blue"},
		{"lxc", id, "", ""},
	} {
		if got, err := (Names{Root: root}).Name(&event.Place{Kind: event.PlaceContainer, Runtime: c.runtime, Container: c.id, Owner: c.owner}); got != c.want || err != nil {
			t.Errorf("%s %.8s of %q: %q, want %q, %v", c.runtime, c.id, c.owner, got, c.want, err)
		}
	}
}

// TestHostileNames: the files are root's, but what they hold was chosen by whoever may start containers.
func TestHostileNames(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ text, want string }{
		"empty":             {"", ""},
		"no name":           {"{}", ""},
		"another type":      {`{"Name":{"a":1}}`, ""},
		"not JSON":          {"\x00\xff", ""},
		"control":           {`{"Name":"/a\u001b[31m\nb\u202e"}`, `a\u{1b}[31m\u{a}b\u{202e}`},
		"HTML and SQL":      {`{"Name":"/<b>'; DROP TABLE places; --"}`, `<b>'; DROP TABLE places; --`},
		"huge":              {fmt.Sprintf(`{"Name":"/%s"}`, strings.Repeat("x", 100000)), strings.Repeat("x", maxName)},
		"cut at a rune":     {fmt.Sprintf(`{"Name":"/%s"}`, "a"+strings.Repeat("é", 1000)), "a" + strings.Repeat("é", maxName/2-1)},
		"larger than bound": {fmt.Sprintf(`{"Config":"%s","Name":"/x"}`, strings.Repeat("x", maxConfig)), ""},
		"deep":              {strings.Repeat(`{"Config":`, 20000), ""},
	} {
		root := t.TempDir()
		put(t, root+"/var/lib/docker/containers/"+id+"/config.v2.json", c.text)
		got, err := (Names{Root: root}).Name(&event.Place{Kind: event.PlaceContainer, Runtime: "docker", Container: id})
		if (err == nil) != (got != "") {
			t.Errorf("%s: %q with error %v: a file that is there has a name or a reason", name, got, err)
		}
		if got != c.want {
			t.Errorf("%s: %.100q, want %.100q", name, got, c.want)
		}
	}
	root := t.TempDir()
	put(t, root+"/secret", `{"Name":"/secret"}`)
	dir := root + "/var/lib/docker/containers/" + id
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(root+"/secret", dir+"/config.v2.json"); err != nil {
		t.Fatal(err)
	}
	if got, err := (Names{Root: root}).Name(&event.Place{Kind: event.PlaceContainer, Runtime: "docker", Container: id}); got != "" || err == nil {
		t.Errorf("a link was followed to %q", got)
	}
}
