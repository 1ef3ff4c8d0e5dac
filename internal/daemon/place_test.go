package daemon

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestOwner(t *testing.T) {
	const file = `root:x:0:0:root:/root:/bin/bash
# comment:x:1:1:::
broken line
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin
homeless:x:1000:1000::/home/gone:/bin/bash
second:x:1002:1002::/home/second:/bin/bash
first:x:1001:100::/home/first:/bin/bash
bad:x:99999999999:1::/home/first:/bin/bash
`
	all, err := accounts(strings.NewReader(file))
	if err != nil {
		t.Fatal(err)
	}
	isDir := func(p string) bool { return p == "/home/first" || p == "/home/second" || p == "/root" }
	for _, tc := range []struct {
		name    string
		env     map[string]string
		only    int // keep this many accounts; 0: all
		want    string
		wantErr string
	}{
		{name: "first human", want: "first"},
		{name: "SUDO_UID", env: map[string]string{"SUDO_UID": "1002", "SUDO_USER": "first"}, want: "second"},
		{name: "SUDO_USER", env: map[string]string{"SUDO_USER": "second"}, want: "second"},
		{name: "sudo by root", env: map[string]string{"SUDO_UID": "0", "SUDO_USER": "root"}, want: "first"},
		{name: "no human", only: 3, want: "root"},
		{name: "SUDO_UID of nobody", env: map[string]string{"SUDO_UID": "4711"}, wantErr: "PICOSNITCH_DIR"},
		{name: "SUDO_UID is no number", env: map[string]string{"SUDO_UID": "01001"}, wantErr: "SUDO_UID"},
		{name: "SUDO_USER of nobody", env: map[string]string{"SUDO_USER": "../x"}, wantErr: "SUDO_USER"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			list := all
			if tc.only > 0 {
				list = all[:tc.only]
			}
			got, err := owner(list, func(k string) string { return tc.env[k] }, isDir)
			if tc.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), tc.wantErr) {
					t.Fatalf("error %v, want one with %q", err, tc.wantErr)
				}
				return
			}
			if err != nil || got.Name != tc.want {
				t.Fatalf("got %q, %v; want %q", got.Name, err, tc.want)
			}
		})
	}
}

func TestRecorderAccount(t *testing.T) {
	for _, tc := range []struct{ name, passwd, want, wantErr string }{
		{name: "no account", passwd: "root:x:0:0::/root:/bin/sh", want: "63147"},
		{name: "package's account", passwd: "picosnitch:x:970:970::/:/usr/sbin/nologin", want: "970"},
		{name: "root in disguise", passwd: "picosnitch:x:0:0::/:/bin/sh", wantErr: "system account"},
		{name: "a person", passwd: "picosnitch:x:1000:1000::/:/bin/sh", wantErr: "system account"},
		{name: "number taken", passwd: "other:x:63147:1::/:/bin/sh", wantErr: "useradd --system picosnitch"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			all, err := accounts(strings.NewReader(tc.passwd))
			if err != nil {
				t.Fatal(err)
			}
			got, err := recorderAccount(all)
			if tc.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), tc.wantErr) {
					t.Fatalf("error %v, want one with %q", err, tc.wantErr)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tc.want, itoa(got.UID)); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestRunDirMustBeAbsolute(t *testing.T) {
	if d, err := RunDir(func(string) string { return "" }); d != "/run" || err != nil {
		t.Errorf("default: %q, %v", d, err)
	}
	for _, bad := range []string{"x", "./x", "/a\nb"} {
		if _, err := RunDir(func(string) string { return bad }); err == nil {
			t.Errorf("accepted %q", bad)
		}
	}
}
