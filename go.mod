module github.com/picosnitch/picosnitch

go 1.26.0
