û
defaultdb *H
defaultdbafter"!
httphttp://after.example:80808d@X`Ú”¹ &hp*N
defaultdbbefore-0"$
httphttp://before-0.example:80808d@X`×”¹ &hp*N
defaultdbbefore-1"$
httphttp://before-1.example:80808d@X`Ø”¹ &hpÎ
defaultweb 
*k
defaultwebafter"!
httphttp://after.example:8080*z121.2.38d@J
teamblueX	`Ù”¹ &h
p
¢canary*O
defaultwebbefore-0"$
httphttp://before-0.example:80808d@X`Ò”¹ &hp*Z
defaultwebbefore-1"$
httphttp://before-1.example:80808@X`Ó”¹ &hpz	moved*O
defaultwebbefore-3"$
httphttp://before-3.example:80808d@X`Õ”¹ &hp*O
defaultwebbefore-4"$
httphttp://before-4.example:80808d@X`Ö”¹ &hp