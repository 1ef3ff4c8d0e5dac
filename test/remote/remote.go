// Package remote holds tests of the copy off the machine against real PostgreSQL and MariaDB servers, which it starts by itself:
// what goes in comes out once, whoever is killed when. The tests are not beside the code because they take a minute.
package remote
