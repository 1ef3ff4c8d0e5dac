package event

import (
	"encoding/json"
	"net/netip"
	"reflect"
	"testing"

	"pgregory.net/rapid"
)

// fill gives every field of v, whatever they are named, any value of its type: a field that write.go does not know shows as a difference.
func fill(t *rapid.T, v reflect.Value, name string) {
	if rapid.IntRange(0, 3).Draw(t, name+" is empty") == 0 {
		return
	}
	switch p := v.Addr().Interface().(type) {
	case *netip.AddrPort:
		*p = drawAddress(t, name)
		return
	case *Event:
		t.Fatalf("%s holds an event", name)
	}
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			fill(t, v.Field(i), name+"."+v.Type().Field(i).Name)
		}
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(t, v.Elem(), name)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), rapid.IntRange(0, 3).Draw(t, name+" length"), 3))
		for i := range v.Len() {
			fill(t, v.Index(i), name)
		}
	case reflect.String:
		v.SetString(rapid.OneOf(rapid.StringMatching(`[ -~]*`), rapid.String(), rapid.Map(rapid.SliceOf(rapid.Byte()), func(b []byte) string { return string(b) })).Draw(t, name))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int64:
		v.SetInt(rapid.Int64().Draw(t, name))
	case reflect.Uint32:
		v.SetUint(uint64(rapid.Uint32().Draw(t, name)))
	case reflect.Uint64:
		v.SetUint(rapid.Uint64().Draw(t, name))
	default:
		t.Fatalf("%s: no values for a %s", name, v.Type())
	}
}

func TestAppendAsJSON(t *testing.T) {
	kinds := []func() (Event, any){
		func() (Event, any) { p := &Process{}; return Event{Process: p}, p },
		func() (Event, any) { x := &Executable{}; return Event{Executable: x}, x },
		func() (Event, any) { f := &Flow{}; return Event{Flow: f}, f },
		func() (Event, any) { e := &Exit{}; return Event{Exit: e}, e },
	}
	rapid.Check(t, func(t *rapid.T) {
		ev, what := kinds[rapid.IntRange(0, len(kinds)-1).Draw(t, "kind")]()
		ev.At = rapid.Int64().Draw(t, "at")
		fill(t, reflect.ValueOf(what).Elem(), "event")
		want, err := json.Marshal(&ev)
		if err != nil {
			t.Fatal(err)
		}
		got, ok := appendKnown([]byte("before"), &ev)
		if !ok {
			t.Fatal("left to encoding/json")
		}
		if string(got) != "before"+string(want) {
			t.Fatalf("\n%s\nencoding/json has\n%s", got, want)
		}
	})
	for _, ev := range []Event{{}, {Notice: &Notice{}}, {Flow: &Flow{}, Process: &Process{}}} {
		if got, ok := appendKnown([]byte("before"), &ev); ok || string(got) != "before" {
			t.Errorf("%q, %t", got, ok)
		}
	}
}

func BenchmarkAppend(b *testing.B) {
	for _, ev := range samples() {
		var buf []byte
		name := "other"
		for i := range reflect.ValueOf(ev).NumField() {
			if f := reflect.ValueOf(ev).Field(i); f.Kind() == reflect.Pointer && !f.IsNil() {
				name = reflect.TypeOf(ev).Field(i).Name
			}
		}
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				buf, _ = Append(buf[:0], &ev)
			}
		})
	}
}
