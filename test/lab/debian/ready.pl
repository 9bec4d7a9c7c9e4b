#!/usr/bin/perl
# Asks the guest's own web server for its page once a second, for ever, and says so on the console: the first line
# tells the lab that the guest is up, the later ones that it still serves.
use strict;
use warnings;
use IO::Socket::INET;
$| = 1;
open(my $console, '>', '/dev/ttyS0') or die "open /dev/ttyS0: $!";
select((select($console), $| = 1)[0]);
my $count = 0;
while (1) {
  my $answer = 'no answer';
  if (my $web = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => 80, Timeout => 5)) {
    print $web "GET / HTTP/1.0\r\n\r\n";
    $answer = <$web> // 'closed';
    $answer =~ s/\s+$//;
  }
  print $console 'swam-guest web ', ++$count, " $answer\n" if $answer ne 'no answer' || $count;
  select(undef, undef, undef, $count ? 1 : 0.1);
}
