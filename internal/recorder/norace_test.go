//go:build !race

package recorder

const raceDetector = false
